"""The report: one HTML page that compares the layers of models.

``stream.py`` measures many images, ``looks.py`` views a few in detail, ``collect.py`` combines both to plain data, and
``page.py`` writes the page with the files in ``assets``.
"""
