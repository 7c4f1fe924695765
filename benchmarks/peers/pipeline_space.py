"""The peer of the Space: the app of the Hugging Face documentation, a pipeline in a gr.Interface.

python benchmarks/peers/pipeline_space.py MODEL PORT
"""

import sys

import gradio as gr
from transformers import pipeline

classifier = pipeline("image-classification", model=sys.argv[1])


def classify(image):
    """Probabilities by label."""
    return {answer["label"]: answer["score"] for answer in classifier(image)}


gr.Interface(classify, gr.Image(type="pil"), gr.Label(num_top_classes=5), api_name="diagnose").launch(
    server_port=int(sys.argv[2])
)
