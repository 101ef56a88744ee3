"""Chat exercises with verified answers, one module for each family: offline stand-ins for the published SFT categories.

In: a number of exercises, a seed, a split, a difficulty from 1 to 4. Out: conversations up to the assistant's turn, the
reasoning that leads to a correct reply, that reply, and a verifier for other replies.

    python -c "import nemotron.recipes.sources.exercises.algebra as e;print(e.generate_exercises(1, 0, split='train'))"

Every family has `FAMILY`, `generate_exercises(num_exercises, seed, *, split, difficulty)` and `check_answer(exercise,
reply)`. No task is both in training and in evaluation, in any two families (../tasks.py), and no exercise is drawn
twice. A verifier accepts a right answer in the forms that a person would accept, and nothing that holds more than one
answer; ../../scoring/chance.py measures what a constant reply gets. Math, code, science, tool calling, multilingual and
safety are categories of arXiv 2508.14444, section 3. Instruction following is its IFEval stage, long context its third
SFT stage. Difficulty 1 fits 256 tokens and a model of 4 M parameters; difficulty 4 is closest to the published data.
The module ifeval.py has a verifier only: its prompts come from the user. The module conversation.py is not a family of
the exam: its replies are graded by a rubric (../rubric.py).
"""
