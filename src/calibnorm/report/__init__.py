"""What commands say of their results: one document model, its writers, and one style for every picture.

document.py holds the model, html.py, markdown.py and screen.py its writers, writing.py calls those that write files,
pictures/ the drawings, files.py the writers of JSON and CSV, streams.py what is printed, measure.py and environment.py
what reports speak of. It imports torch and the standard library when it is imported; rich and matplotlib are imported
where they are used.
"""
