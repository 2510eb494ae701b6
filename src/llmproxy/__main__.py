"""`python -m llmproxy` is the `llmproxy` command."""

import sys

from llmproxy.cli import main

sys.exit(main())
