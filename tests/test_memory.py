"""Where memory does not suffice for a batch, smaller ones give the same answers."""

import pytest
import torch
from recursivemas.agent_recursivemas import RecursiveMASAgent
from recursivemas.engine_recursivemas import Run
from recursivemas.errors_recursivemas import OutOfMemoryError

QUESTIONS = [f"How many apples are {'1' * n} + {n} apples?" for n in range(7)]


def of_the_processor():
    torch.empty(10**17)


def of_an_accelerator():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_cublas():
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_python():
    raise MemoryError


@pytest.fixture
def memory_for(monkeypatch):
    """Lets memory suffice for so many rows of thinking or answering; gives the sizes that were tried."""

    def limit(rows, fails):
        rollout, answer, tried = RecursiveMASAgent.rollout, Run.answer, []

        def narrow_rollout(self, inputs_embeds, *args, **kwargs):
            if len(inputs_embeds) > rows:
                tried.append(len(inputs_embeds))
                fails()
            return rollout(self, inputs_embeds, *args, **kwargs)

        def narrow_answer(self, *args, **kwargs):
            if len(self.questions) > rows:
                tried.append(len(self.questions))
                fails()
            return answer(self, *args, **kwargs)

        monkeypatch.setattr(RecursiveMASAgent, "rollout", narrow_rollout)
        monkeypatch.setattr(Run, "answer", narrow_answer)
        return tried

    return limit


@pytest.mark.parametrize(
    ("fails", "way"),
    [
        (of_the_processor, {}),
        (of_an_accelerator, {"mode": "text"}),
        (of_cublas, {"mode": "alone"}),
        (of_python, {"control": "noise"}),
    ],
)
def test_a_batch_without_memory_is_halved_and_gives_the_same_answers(chain, memory_for, fails, way):
    settings = {"max_new_tokens": 6, "batch_size": 5, "num_rounds": 2, **way}
    expected, progress = chain.solve(QUESTIONS, **settings), []
    tried = memory_for(2, fails)
    found = chain.solve(QUESTIONS, on_progress=progress.append, **settings)
    assert [s.text for s in found] == [s.text for s in expected]
    assert [s.messages for s in found] == [s.messages for s in expected]
    assert sum(progress) == len(QUESTIONS)
    assert tried == [5], "what follows is not tried at the size that failed"


def test_halving_is_said(chain, memory_for, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        memory_for(2, of_an_accelerator)
        chain.solve(QUESTIONS, max_new_tokens=2, num_rounds=1)
    finally:
        logging.disable_propagation()
    assert "Not enough memory for 7 questions" in caplog.text and "for 3 questions" in caplog.text


@pytest.mark.parametrize("fails", [of_the_processor, of_an_accelerator, of_cublas, of_python])
def test_one_question_that_does_not_fit_is_an_error_by_name(chain, memory_for, fails):
    tried = memory_for(0, fails)
    with pytest.raises(OutOfMemoryError, match="1 question side by side"):
        chain.solve(QUESTIONS, max_new_tokens=2, num_rounds=1, batch_size=4)
    assert tried == [4, 2, 1]


def test_questions_that_stand_in_for_each_other_are_not_parted(chain, memory_for):
    memory_for(2, of_an_accelerator)
    with pytest.raises(OutOfMemoryError, match="smaller batch_size"):
        chain.solve(QUESTIONS, max_new_tokens=2, num_rounds=1, control="other_question")


def test_other_errors_are_not_taken_for_it(chain, memory_for):
    def fails():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    tried = memory_for(2, fails)
    with pytest.raises(RuntimeError, match="shapes"):
        chain.solve(QUESTIONS, max_new_tokens=2, num_rounds=1)
    assert tried == [7]


def test_solutions_come_as_they_are_finished_and_in_order_if_asked_for(chain):
    heard = []

    def hear(rows, solutions):
        heard.append((rows, [s.text for s in solutions]))

    questions = QUESTIONS[::-1]
    texts = [s.text for s in chain.solve(questions, max_new_tokens=4, batch_size=3, on_solutions=hear)]
    assert [rows for rows, _ in heard] == [[6, 5, 4], [3, 2, 1], [0]]
    assert all(found == [texts[row] for row in rows] for rows, found in heard)
    heard.clear()
    chain.solve(questions, max_new_tokens=4, batch_size=3, on_solutions=hear, keep_order=True)
    assert [rows for rows, _ in heard] == [[0, 1, 2], [3, 4, 5], [6]]
    assert all(found == [texts[row] for row in rows] for rows, found in heard)
