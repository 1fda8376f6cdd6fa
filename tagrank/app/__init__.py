"""A page in the browser, on which a person tags photographs together with a model.

What the page computes is apart from how it is shown. ``proposals`` makes a list and its positions from what a model
says; ``session`` has the photographs of one user; ``service`` does what a user asks for; ``finding`` searches an index;
``downloads`` makes the files to download. They know nothing of a browser. ``parts`` writes HTML with ``parts.html.j2``,
``layout`` arranges it with Gradio, ``uploads`` takes files, and ``server`` lets nothing else through.
"""
