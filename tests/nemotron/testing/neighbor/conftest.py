"""A project that does not use the plugin, but has files, fixtures and an option with the names that it uses."""

pytest_plugins = ["somebody"]


def pytest_addoption(parser):
    parser.addoption("--report-dir", default="reports")
