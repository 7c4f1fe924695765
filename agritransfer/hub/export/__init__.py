"""How does a model run without torch?"""
