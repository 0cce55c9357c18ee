"""Index a folder's texts, so that a system's tool `search` finds them without any network.

Examples:
  recursivemas index notes/
  recursivemas index notes/ --query "who wrote the harbour poem"
  recursivemas solve --system my-system --tools search --search-index notes/ "Who wrote the harbour poem?"
"""

import argparse

from .search import FolderIndex, build_index, search_tool


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of texts (.txt, .md, .html, .json, .csv, …)")
    parser.add_argument("--output", help="the index's file (default: .recursivemas.index in the folder)")
    parser.add_argument("--query", help="then search for this, and print what the tool would answer")


def run(arguments: argparse.Namespace) -> int:
    path, files, passages = build_index(arguments.folder, arguments.output)
    print(f"{passages} passages of {files} files in {path}")
    if arguments.query is not None:
        print(search_tool(FolderIndex(path))(arguments.query))
    return 0
