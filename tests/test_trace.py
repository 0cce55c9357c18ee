"""`recursivemas trace`: what it shows is what happened, and its page is safe and complete."""

import html.parser
import json

import pytest
from recursivemas import cli
from recursivemas.inspection.trace import as_page, trace

QUESTION = 'Why <script>alert("1")</script> & not?'


@pytest.fixture(scope="module")
def found(chain):
    return trace(chain, QUESTION, num_rounds=2, max_new_tokens=5)


def test_a_trace_holds_every_turn_and_what_each_way_answers(chain, found):
    schedule = chain.topology.schedule(2)
    assert [(turn["round"], turn["role"]) for turn in found["turns"]] == schedule
    for way, of in found["ways"].items():
        (solution,) = chain.solve(QUESTION, mode=way, num_rounds=2, max_new_tokens=5)
        assert (of["text"], of["usage"]["new_tokens"]) == (solution.text, solution.usage["new_tokens"])
    assert found["turns"][-1]["wrote"] == found["ways"]["latent"]["text"]


def test_a_trace_reads_what_travelled_and_says_which_slot_it_filled(chain, found):
    (solution,) = chain.solve(QUESTION, num_rounds=2, max_new_tokens=5, return_latents=True)
    sent = [entry for turn in found["turns"] for entry in turn["sent"]]
    assert {(e["round"], e["source"], e["target"]) for e in sent} == set(solution.latents)
    for entry in sent:
        latents = solution.latents[entry["round"], entry["source"], entry["target"]]
        agent = chain.agents[entry["target"]]
        assert entry["tokens"] == [agent.tokenizer.decode([i]) for i in agent.nearest_token_ids(latents).tolist()]
        assert entry["norms"] == pytest.approx(latents.float().norm(dim=-1).tolist(), abs=1e-3)
    filled = sum(piece.get("positions", 0) for turn in found["turns"] for piece in turn["prompt"])
    assert filled == solution.usage["slot_positions"]
    assert [entry["similarity"] is None for entry in sent] == [entry["round"] == 1 for entry in sent]


class Page(html.parser.HTMLParser):
    """Checks that tags close in order, and gathers them with the text."""

    VOID = ("meta", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not {name for name, _ in attributes} & {"src", "href", "onclick", "onload"}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_runs_no_text_as_code(found):
    text = as_page(found)
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert page.text.count(QUESTION) >= 2
    for entry in found["roles"]:
        assert entry["role"] in page.text


def test_the_command_writes_the_page_or_prints_text_or_json(chain_folder, tmp_path, capsys):
    usual = ["trace", "--system", str(chain_folder), "--max-new-tokens", "3", "--rounds", "1", "Why?"]
    page = tmp_path / "deep" / "trace.html"
    assert cli.main([*usual, "--output", str(page)]) == 0
    assert "Why?" in Page(page.read_text(encoding="utf-8")).text and "Why?" not in capsys.readouterr().out
    assert cli.main([*usual, "--json", "--without-comparison"]) == 0
    assert list(json.loads(capsys.readouterr().out)["ways"]) == ["latent"]
    assert cli.main(usual) == 0
    printed = capsys.readouterr().out
    assert "round 1" in printed and "alone" in printed
    assert cli.main([*usual, "--output", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_solution_says_what_was_thought_and_shows_itself_short_and_safe(chain):
    (solution,) = chain.solve(QUESTION, num_rounds=2, max_new_tokens=5, return_latents=True)
    assert set(solution.thoughts) == set(solution.latents)
    for key, text in solution.thoughts.items():
        assert text == chain.agents[key[2]].read_out(solution.latents[key])
    assert len(repr(solution)) < 300 and "tensor" not in repr(solution)
    shown = Page(solution._repr_html_())
    assert "script" not in shown.tags
    for text in (solution.text, *solution.thoughts.values()):
        assert text.replace("\r", "\n") in shown.text.replace("\r", "\n")
    json.dumps({name: solution[name] for name in ("text", "answer", "usage")})
