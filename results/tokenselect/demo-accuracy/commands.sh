#!/bin/sh
# The accuracy runs of this directory. Runs what is missing: finished samples of a directory are kept.
#
#     cargo build --release && PATH="$PWD/target/release:$PATH" sh results/tokenselect/demo-accuracy/commands.sh OUT
#
# Without an argument the results go to out/demo-accuracy. THREADS counts for all; what we gave each run is in README.md.
# One after the other they take long on few cores.
set -eu
out=${1:-out/demo-accuracy}
threads=${THREADS:-2}

bench() {
    directory=$1
    suite=$2
    shift 2
    tokselect bench "$suite" --chat-template none --no-progress -q --format json --threads "$threads" -o "$out/$directory" "$@" \
        > /dev/null
}

ruler_tasks=niah_single_1,niah_single_2,niah_single_3,niah_multikey_1,niah_multikey_2,niah_multikey_3
ruler_tasks=$ruler_tasks,niah_multivalue,niah_multiquery,vt
infinite_tasks=passkey,number_string,kv_retrieval

# Read the prompt with 32 + 128 + 512 tokens (streaming-llm: 32 + 640).
selecting="--policies token-select --policies token-select:head-map=modulo --policies streaming-llm:n-local=640 --policies inf-llm"
# Read the prompt densely.
dense="--policies dense:prefill-chunk=512 --policies ntk:prefill-chunk=512 --policies yarn:prefill-chunk=512"
dense="$dense --policies self-extend:prefill-chunk=512 --policies quest:prefill-chunk=512 --policies snap-kv:prefill-chunk=512"
reference="--reference dense:prefill-chunk=512"

# Up to 8K, three samples of each task.
bench ruler-to-8k ruler --tasks $ruler_tasks --lengths 1k,2k,4k,8k --samples 3 $dense $selecting $reference
bench infinite-bench-to-8k infinite-bench --tasks $infinite_tasks --lengths 1k,2k,4k,8k --samples 3 $dense $selecting $reference

# 16K and 32K: three samples where the prompt is read with few tokens, one where it is read densely.
for length in 16k 32k; do
    bench ruler-$length-selecting ruler --tasks $ruler_tasks --lengths $length --samples 3 $selecting
    bench infinite-bench-$length-selecting infinite-bench --tasks $infinite_tasks --lengths $length --samples 3 $selecting
    bench ruler-$length-dense ruler --tasks $ruler_tasks --lengths $length --samples 1 $dense $reference
    bench infinite-bench-$length-dense infinite-bench --tasks $infinite_tasks --lengths $length --samples 1 $dense $reference
done

# One setting of token-select at a time, at 16K.
sweep() {
    directory=$1
    shift
    bench "$directory" ruler --tasks niah_single_2,niah_multikey_2,niah_multivalue,niah_multiquery,vt --lengths 16k --samples 3 \
        --reference token-select --policies token-select "$@"
}
sweep votes \
    --policies token-select:vote=head --policies token-select:vote=logit --policies token-select:score-scale=sqrt-d \
    --policies token-select:vote=head,score-scale=sqrt-d --policies token-select:vote=logit,score-scale=sqrt-d
sweep top-k \
    --policies token-select:top-k=64 --policies token-select:top-k=128 --policies token-select:top-k=256 \
    --policies token-select:top-k=384 --policies token-select:top-k=640
sweep cache-threshold \
    --policies token-select:cache-threshold=off --policies token-select:cache-threshold=0.95 \
    --policies token-select:cache-threshold=0.8 --policies token-select:cache-threshold=0.7 \
    --policies token-select:cache-threshold=0.5 --policies token-select:cache-threshold=0
sweep corrections \
    --policies token-select:head-map=modulo --policies token-select:score-scale=sqrt-d \
    --policies token-select:chunk-query=last --policies token-select:chunk-query=subchunk:32 \
    --policies token-select:local-outside-chunk=off --policies token-select:last-token-alone=off \
    --policies token-select:cache-gap-repair=off --policies token-select:positions=original \
    --policies token-select:smoothing=5 \
    --policies token-select:paper,n-init=32,n-local=128,top-k=512,prefill-chunk=128
