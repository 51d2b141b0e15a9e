"""Memory that a CPU computes in."""

import os
import subprocess
import sys

import pytest

FAULTS_OF_A_SECOND_PASS = """
import resource
import numpy
import udse_fast

enhancer = udse_fast.Enhancer(precision="float32", device="cpu", sampler="ddrm", steps=3)
noise = numpy.random.default_rng(0).standard_normal(32000, dtype=numpy.float32)
enhancer.enhance(noise, 16000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
enhancer.enhance(noise, 16000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults of glibc's heap")
def test_a_pass_computes_in_the_memory_of_the_one_before(tmp_path):
    def faults(**settings):
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        run = [sys.executable, "-c", FAULTS_OF_A_SECOND_PASS]
        done = subprocess.run(
            run, env={**plain, **settings}, stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path
        )  # not the sources: the package
        return int(done.stdout)

    assert faults() < 1000  # 4 MB
    assert faults(MALLOC_TRIM_THRESHOLD_="131072") > 2500  # what the user has set stays
