"""What leaves the package for a terminal: messages in which names are names, whoever wrote them."""

import logging
import sys

from mmengine.logging import MMLogger

from crate_mm.io.log import print_log
from crate_mm.io.untrusted import say

FORGED = "\x1b[31mred\nerror: forged"


def test_a_name_in_the_log_acts_on_no_terminal_and_begins_no_line(capsys):
    MMLogger.get_instance("a log of names").handlers[0].setStream(sys.stdout)
    print_log(f"a file called {FORGED}\n  and a row below", "current", logging.WARNING)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith(r"a file called \x1b[31mred")
    assert (second, third) == ("  error: forged", "  and a row below")


def test_what_a_tool_says_is_one_line_a_message(capsys):
    say(f"wrote {FORGED}", "and more")
    assert capsys.readouterr().out == "wrote \\x1b[31mred\\nerror: forged\nand more\n"
