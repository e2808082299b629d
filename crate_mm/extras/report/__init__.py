"""The white box as a page: what is measured and seen of one model or several, as one HTML file.

``stream.py`` measures many images in a stream, ``looks.py`` looks closely at a few, ``gather.py`` puts both together as
plain data, and ``page.py`` makes the page of them, with what stands in ``assets``.
"""
