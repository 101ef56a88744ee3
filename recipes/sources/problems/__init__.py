"""Procedural problems with verified answers, one module for each family.

In: a number of problems, a seed, a split. Out: problems with question, worked steps, answer and four choices, and
documents of the category "math" made from them. Training and evaluation share no task: a digest of the task decides its
split, here and in ../exercises, so what fine-tuning is evaluated on is not in the problems of pretraining either.

    python -c "import nemotron.recipes.sources.problems.arithmetic as p;print(p.generate_problems(1, 0, split='train'))"

Every family has `generate_problems(num_problems, seed, *, split, difficulty)` and `check_answer(problem, answer)`. They
are stand-ins for the published math text, which is extracted from web pages (arXiv 2508.14444, section 2.2).
"""
