"""The peers: a file each, which serves one model at POST /predict, as documented or tuned (BENCH_TUNED=1)."""
