"""What `tests/tools/overhead.py` measures."""

import os
import time

from testing import cell_config, text
from tools import overhead

from nas_jax.search import journal


def test_all_that_a_search_writes_is_measured_once(tmp_path, monkeypatch):
  """Each line of updates.jsonl is made to take 50 ms, which count as notes and not as the journal's."""
  writer = journal.writer

  def slow(path):
    write = writer(path)

    def call(lines):
      time.sleep(0.05 * (os.path.basename(path) == 'updates.jsonl'))
      write(lines)

    return call

  monkeypatch.setattr(journal, 'writer', slow)
  spent, total = overhead.measure(str(tmp_path), cell_config(), text(), 6)
  assert set(spent) == {'journal', 'checkpoints', 'best.json', 'started.jsonl', 'notes for people'}
  assert spent['notes for people'] > 0.1 > spent['journal'] > 0 and sum(spent.values()) < total
  assert len(journal.read(str(tmp_path / 'updates.jsonl'), 'step')) == 3
  assert journal.writer is slow
