"""Talk to a fine-tuned Nano 2 checkpoint in the terminal, or through a pipe; recipes/chat/program.py says how.

In: a Checkpoint of stage 1 or 2, or a directory that transformers can load; lines from the terminal, or one message
from the pipe. Out: the answers on stdout, the thinking on stderr.
Run: python -m nemotron.recipes.nano2.chat_cli outputs/nano2/small/stage1_sft/training
     echo "What is 7 + 5? /no_think" | python -m nemotron.recipes.nano2.chat_cli outputs/nano2/small/stage1_sft/training
"""

from nemotron.recipes.chat.program import chat_program
from nemotron.recipes.nano2.chat import CHAT

if __name__ == "__main__":
    chat_program(CHAT)
