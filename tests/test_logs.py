"""What the package logs goes where it should, and leaves nothing behind."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest
from _pytest.logging import LogCaptureHandler

from expand import logs
from expand.run.display import LogFile, show_log_on
from expand.rundir.paths import RunPaths

logger = logging.getLogger("expand.somewhere")


@pytest.fixture(autouse=True)
def nothing_stays():
    def state():
        own = [handler for handler in logs.PACKAGE.handlers if not isinstance(handler, LogCaptureHandler)]
        return own, logs.PACKAGE.level, logs.PACKAGE.propagate, logging.getLogger().level

    before = state()
    yield
    assert state() == before


def test_a_library_says_nothing_unless_it_is_asked():
    program = ("import logging, expand\n"
               "from expand.model import load\n"
               "load.logger.warning('unheard')\n"
               "assert [type(handler) for handler in logging.getLogger('expand').handlers] == [logging.NullHandler]\n"
               "assert not logging.getLogger().handlers\n"
               "logging.basicConfig(format='%(name)s %(message)s'); load.logger.warning('heard')")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "expand.model.load heard\n")


def test_each_of_two_runs_in_a_process_has_its_own_log(tmp_path):
    paths, ready = [RunPaths(tmp_path / name) for name in "ab"], threading.Barrier(2)

    def run(number):
        with logs.received_by(LogFile(paths[number]).write):
            ready.wait()
            logger.info(f"run {number}, 100 % of %s")
            ready.wait()

    for each in paths:
        each.root.mkdir()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logger.warning("after both")
    for number, each in enumerate(paths):
        [line] = each.log.read_text().splitlines()
        assert line[20:] == f"run {number}, 100 % of %s"


def test_receivers_end_with_their_block_however_it_ends(lines):
    with pytest.raises(RuntimeError), logs.shown_by(lambda text: lines.append(f"inner: {text}")):
        logger.info("one")
        raise RuntimeError
    logger.info("two")
    assert lines == ["one", "inner: one", "two"]


def test_root_handlers_get_what_no_display_shows_at_the_level_that_was_set(caplog, tmp_path):
    paths = RunPaths(tmp_path)
    with logs.received_by(LogFile(paths).write):
        logger.info("for the file alone")
        logger.warning("for both")
        with logs.shown_by(lambda text: None):
            logger.warning("shown")
    with caplog.at_level(logging.INFO, "expand"), show_log_on(None):
        logger.info("asked for")
    assert [record.message for record in caplog.records] == ["for both", "asked for"]
    assert len(paths.log.read_text().splitlines()) == 3


def test_the_line_of_an_event_is_logged_but_not_shown_twice(lines, tmp_path):
    with logs.received_by(LogFile(RunPaths(tmp_path)).write):
        logs.EVENTS.info("an event")
    assert lines == [] and (tmp_path / "log.txt").read_text().endswith(" an event\n")


def test_nothing_is_heard_of_what_is_muted(caplog):
    lines: list[str] = []
    with logs.shown_by(lines.append), show_log_on(None, is_muted=True):
        logger.error("lost")
    assert lines == [] and not caplog.records
