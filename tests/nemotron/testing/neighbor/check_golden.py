def test_fixture_of_this_project(golden, request):
    assert golden == 42
    assert request.config.getoption("--report-dir") == "reports"


def test_another_name_of_this_project(stage0):
    assert stage0 == 1
