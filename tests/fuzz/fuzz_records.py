"""The coverage-guided fuzzer over targets.py. Run by ci/fuzz.sh:

    python tests/fuzz/fuzz_records.py <corpus directory> [libFuzzer's options]

Writes the seeds into the corpus first. An input that finds something is saved by libFuzzer and fails the run; give
the file in place of the directory to run it again.
"""

import sys
from hashlib import sha256
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cysession", "targets"]):
    import targets

corpus = Path(sys.argv[1]) if len(sys.argv) > 1 else None
if corpus is not None and corpus.is_dir():
    for seed in targets.seeds():
        (corpus / sha256(seed).hexdigest()[:16]).write_bytes(seed)
atheris.Setup(sys.argv, targets.run)
atheris.Fuzz()
