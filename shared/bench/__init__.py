"""How fast the product is: its steps and attacks beside plain loops and reference packages, in one run (`make bench`).

timing    interleaved repetitions, the machine's matrix-multiplication rate, counted floating-point operations
harness   options, the table, results/bench.json; a paper's own bench uses it too
plain     what is compared with: open_clip's own classes, and loops as they are commonly written
pgd, apgd, contrastive    the cases
"""
