"""The page in a browser, and its API: `python -m openvocab.app`.

`asked` reads what a visitor types, `engine` runs the methods one picture at a time, `analysis`
says why a pixel has its name; none of them knows gradio. `page` and `server` show it.
"""
