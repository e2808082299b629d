"""The report: one HTML page that compares the layers of models.

``stream.py`` measures many images, ``looks.py`` shows a few images in detail, ``collect.py`` combines both into plain
data, and ``page.py`` writes the page with the files in ``assets``.
"""
