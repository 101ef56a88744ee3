"""A license is found if a text states one, and only then."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.licences import stated_licence

MIT_NOTICE = (
    "# Permission is hereby granted, free of charge, to any person obtaining\n# a copy of this software and associated"
)
BSD_NOTICE = "Redistribution and use in source and binary forms, with or without\nmodification, are permitted"
BSD_THIRD_CLAUSE = "* Neither the name of the project nor the names of its contributors"
NO_PATENT = "NO EXPRESS OR IMPLIED LICENSES TO ANY PARTY'S PATENT RIGHTS ARE\nGRANTED"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("# SPDX-License-Identifier: Apache-2.0\n", "Apache-2.0"),
        ("# SPDX-License-Identifier: MIT OR Apache-2.0\nimport os\n", "MIT OR Apache-2.0"),
        (MIT_NOTICE, "MIT"),
        ("# derived from x, under the MIT license", "MIT"),
        (BSD_NOTICE, "BSD-2-Clause"),
        (f"{BSD_NOTICE}\n{BSD_THIRD_CLAUSE}", "BSD-3-Clause"),
        (f"{BSD_NOTICE}\n{BSD_THIRD_CLAUSE}\n{NO_PATENT}", "BSD-3-Clause-Clear"),
        ("# you can redistribute it under the GNU General Public\n# License as published", "GPL"),
        ("# This file is GPLv3", "GPL"),
        ("# under the terms of the GNU Lesser General Public License", "LGPL"),
        ("# Licensed under the Apache License, Version 2.0", "Apache-2.0"),
        ("# <http://creativecommons.org/licenses/by-sa/3.0/>", "CC-BY-SA-3.0"),
        ("# <https://creativecommons.org/licenses/by-nc-nd/4.0>", "CC-BY-NC-ND-4.0"),
        (f"# x is under the MIT license\n{BSD_NOTICE}\n{BSD_THIRD_CLAUSE}", "BSD-3-Clause AND MIT"),
    ],
)
def test_a_statement_gives_its_spdx_identifier(text: str, licence: str) -> None:
    assert stated_licence(text) == licence


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def f(x): return x",
        "cipher = 'KFKLJJHF5MMMKTFRGPL'",  # the only GPL in the four packages
        "there is no licence for the code",
        "See license in LICENSE.txt",
        "Copyright (C) 2008 Somebody",
        "a permitted use, with the limits of a MITRE report",
    ],
)
def test_other_occurrences_of_the_letters_state_nothing(text: str) -> None:
    assert stated_licence(text) is None


@given(before=st.text(), after=st.text())
def test_a_notice_is_found_in_any_surroundings(before: str, after: str) -> None:
    licence = stated_licence(f"{before}\n{MIT_NOTICE}\n{after}")
    assert licence is not None
    assert "MIT" in licence.split(" AND ")


def test_this_projects_license_file_is_recognized() -> None:
    licence_file = Path(__file__).parents[3] / "LICENSE"
    assert stated_licence(licence_file.read_text()) == "Apache-2.0"
