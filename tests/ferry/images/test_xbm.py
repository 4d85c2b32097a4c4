"""An XBM is C source, and `#` begins a comment in many languages: only the whole form is an image."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from ferry.core.errors import ObjectError
from ferry.core.records import ErrorClass
from ferry.images.check import check_image

HEAD = "#define a_width 16\n#define a_height 2\n"
BITS = "static unsigned char a_bits[] = {\n0x01, 0x02,\n0x03, 0x04\n};\n"


def by_pillow() -> str:
    out = io.BytesIO()
    Image.new("1", (400, 300)).save(out, "XBM", hotspot=(3, 4))
    return out.getvalue().decode()


@pytest.mark.parametrize(
    "text",
    [
        HEAD + BITS,
        "\n" + HEAD.replace("\n", "\r\n") + BITS,
        HEAD + "#define a_x_hot 1\n#define a_y_hot -1\n" + BITS,
        HEAD + "static char a_bits[] = {0x01,0x02,0x03,0x04}",
        HEAD + "static const unsigned short a_bits[2] = { 0X0102, 0x0304, } ;",
        by_pillow(),
    ],
)
def test_what_bitmap_programs_write(text: str) -> None:
    """Sizes, hot spots and an array of numbers, to the end."""
    assert check_image(text.encode()).name == "XBM"


@pytest.mark.parametrize(
    "rest",
    [
        "import os\nos.system('id')\nx = {}\nx = {\n}",
        '[logging]\nconfig_path = "logo.yml"\nx = {a = 1}',
        "version: 1\nformatters:\n  x: {}",
        "export A=`id`\nfunction f {\n id\n}",
        "PREFECT_API_URL=http://x\n#}",
        "id\n" + BITS,
        BITS + "id\n}",
        "/*\nid\n*/" + BITS,
        BITS.replace("0x02", "$(id)"),
        BITS.replace("0x02", "a"),
        "#define a_x_hot $(id)\n" + BITS,
    ],
)
def test_what_begins_as_one_and_is_another_file(rest: str) -> None:
    """Python, TOML, YAML, a shell, an environment file: whatever stands beside the form makes it not an image."""
    with pytest.raises(ObjectError) as caught:
        check_image((HEAD + rest).encode())
    assert caught.value.error_class is ErrorClass.NOT_IMAGE


@pytest.mark.parametrize("text", ["/* $(id) */\n" + HEAD + BITS, "import os\n" + HEAD + BITS, "a" + HEAD + BITS])
def test_nothing_may_stand_before(text: str) -> None:
    """Not a comment either: its text is a command to a shell."""
    with pytest.raises(ObjectError) as caught:
        check_image(text.encode())
    assert caught.value.error_class is ErrorClass.NOT_IMAGE


def test_a_cut_in_its_array_is_a_cut() -> None:
    """What may still come is truncated, and so worth another try."""
    whole = (HEAD + BITS).encode()
    for length in range(whole.index(b"{") + 1, whole.index(b"}")):
        with pytest.raises(ObjectError) as caught:
            check_image(whole[:length])
        assert caught.value.error_class is ErrorClass.TRUNCATED, whole[:length]
