"""Judge a model and a defence of one's own: attacks, intervals, sanity checks, a verdict, a page (docs/judge.md).

options   what the command line says         steps     what is computed
given     what the user brings               verdict   what the numbers mean, by a declared rule
look      what is refused before it runs     page      tables, page, files for others; two results side by side
"""
