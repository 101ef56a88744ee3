"""A license is found if a text states one, and only then."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.recipes.sources.licences import column_licence, stated_licence

MIT_NOTICE = (
    "# Permission is hereby granted, free of charge, to any person obtaining\n# a copy of this software and associated"
)
BSD_NOTICE = "Redistribution and use in source and binary forms, with or without\nmodification, are permitted"
BSD_THIRD_CLAUSE = "* Neither the name of the project nor the names of its contributors"
GPL_NOTICE = "under the GNU General Public License"
NO_PATENT = "NO EXPRESS OR IMPLIED LICENSES TO ANY PARTY'S PATENT RIGHTS ARE\nGRANTED"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("# SPDX-License-Identifier: Apache-2.0\n", "Apache-2.0"),
        ("# SPDX-License-Identifier: MIT OR Apache-2.0\nimport os\n", "MIT OR Apache-2.0"),
        (f"# SPDX-License-Identifier: MIT OR Apache-2.0\n# the parser is {GPL_NOTICE}", "(MIT OR Apache-2.0) AND GPL"),
        ("# SPDX-License-Identifier: (MIT OR Apache-2.0) AND GPL-3.0-only\n", "(MIT OR Apache-2.0) AND GPL-3.0-only"),
        ("# SPDX-License-Identifier: GPL-3.0-only AND\n#   (MIT OR ISC)\n", "GPL-3.0-only AND (MIT OR ISC)"),
        ("/* SPDX-License-Identifier: mit and gpl-2.0-or-later */", "mit and gpl-2.0-or-later"),
        (
            "# spdx-license-identifier:GPL-2.0-only WITH Classpath-exception-2.0",
            "GPL-2.0-only WITH Classpath-exception-2.0",
        ),
        ("(see SPDX-License-Identifier: MIT)", "MIT"),
        ("SPDX-License-Identifier: ISC. More words.", "ISC"),
        ("SPDX-License-Identifier: MIT\nSPDX-License-Identifier: ISC OR GPL-2.0-only", "(ISC OR GPL-2.0-only) AND MIT"),
        ("# SPDX-License-Identifier: <to be decided>", "not understood"),
        ("# SPDX-License-Identifier: MIT OR GPL-2.0-only\n", "MIT OR GPL-2.0-only"),
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


@pytest.mark.parametrize(
    ("value", "licence"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ([], None),
        ([None, ""], None),
        ({}, None),
        ("MIT", "MIT"),
        (" mit ", "mit"),
        (["GPL-3.0-only"], "GPL-3.0-only"),
        (["MIT", "GPL-3.0-only"], "GPL-3.0-only AND MIT"),
        (["MIT OR ISC", "GPL-3.0-only"], "(MIT OR ISC) AND GPL-3.0-only"),
        ([["MIT"], "MIT"], "MIT"),
        (["MIT", None], "MIT"),
        (["MIT", 3], "3 AND MIT"),
        ({"id": "GPL-3.0-only"}, '{"id": "GPL-3.0-only"}'),
        (7, "7"),
        (False, "false"),
        ("MIT\ud800", '"MIT\\ud800"'),
        (b"MIT", "b'MIT'"),
    ],
)
def test_a_column_that_states_anything_never_states_nothing(value, licence) -> None:
    assert column_licence(value) == licence


def test_the_licences_of_several_columns_all_bind() -> None:
    assert column_licence(["MIT", ["MIT", "ISC"]]) == "ISC AND MIT"


@given(before=st.text(), after=st.text())
def test_a_notice_is_found_in_any_surroundings(before: str, after: str) -> None:
    licence = stated_licence(f"{before}\n{MIT_NOTICE}\n{after}")
    assert licence is not None
    assert "MIT" in licence.split(" AND ")


def test_this_projects_license_file_is_recognized() -> None:
    licence_file = Path(__file__).parents[3] / "LICENSE"
    assert stated_licence(licence_file.read_text()) == "Apache-2.0"
