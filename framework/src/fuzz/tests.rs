//! The bodies over the corpus and a fixed number of mutations, each within its memory.

use std::path::PathBuf;

use super::{MEMORY_BASE, TARGETS, Target};

/// Mutations of each input of the corpus, unless the variable [`MORE`] has another number.
const MUTATIONS: usize = 100;
/// A long run without cargo-fuzz: `PERENNIAL_MUTATIONS=100000 cargo test -p perennial fuzz::`.
const MORE: &str = "PERENNIAL_MUTATIONS";
/// Set to write the seeds into the corpus instead of comparing them.
const WRITE: &str = "PERENNIAL_WRITE_SEEDS";

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus")).join(target.name)
}

fn check(target: &Target, input: &[u8]) {
    let used = allocation_counter::measure(|| (target.run)(input)).bytes_max as usize;
    let bound = MEMORY_BASE + target.memory_factor * input.len();
    assert!(used <= bound, "{}: {used} bytes of memory for {} of input", target.name, input.len());
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<_> = std::fs::read_dir(folder(target))
        .unwrap_or_else(|error| panic!("{} has no corpus ({error}): set {WRITE}=1", target.name))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn the_corpus_holds_the_seeds() {
    for target in TARGETS {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            let file = folder(target).join(format!("seed-{number:02}"));
            if std::env::var_os(WRITE).is_some() {
                std::fs::create_dir_all(folder(target)).unwrap();
                std::fs::write(&file, seed).unwrap();
            }
            let stored = std::fs::read(&file).unwrap_or_default();
            assert!(stored == *seed, "{} is not what its target makes: set {WRITE}=1", file.display());
        }
    }
}

/// SplitMix64: the same mutations on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(input.len());
    match random.below(8) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        2 => input.truncate(at),
        3 => input.insert(at, random.below(256) as u8),
        // The longest number there is.
        4 => drop(input.splice(at..at, [[0xff; 9].as_slice(), &[1]].concat())),
        5 => {
            let piece = input[at..].to_vec();
            input.extend_from_slice(&piece[..piece.len().min(64)]);
        }
        6 => {
            let from = random.below(other.len());
            input.splice(at.., other[from..].iter().copied());
        }
        _ if !input.is_empty() => drop(input.remove(at)),
        _ => input.push(random.below(256) as u8),
    }
}

#[test]
fn no_decoder_panics_or_asks_for_much_memory() {
    let mutations = std::env::var(MORE).map_or(MUTATIONS, |number| number.parse().unwrap());
    for target in TARGETS {
        let corpus = corpus(target);
        let mut random = Random(7);
        for input in &corpus {
            check(target, input);
            let mut mutant = input.clone();
            for n in 0..mutations {
                if n % 8 == 0 {
                    mutant.clone_from(input);
                }
                let other = random.below(corpus.len());
                mutate(&mut random, &mut mutant, &corpus[other]);
                check(target, &mutant);
            }
        }
        for len in [1, 64, 4096] {
            for byte in [0, 1, 3, 9, 0x7f, 0xff] {
                check(target, &vec![byte; len]);
            }
        }
    }
}

#[test]
fn a_frame_full_of_the_smallest_things_costs_a_bounded_multiple() {
    // One byte repeated is, for a postcard decoder, a list of as many of the smallest things as fit.
    const FRAME: usize = 1 << 20;
    for target in TARGETS.iter().filter(|target| target.name != "raft_steps") {
        for start in 0..8u8 {
            for fill in [0u8, 1, 2, 3] {
                let mut input = vec![1, start, 0xff, 0xff, 0x3f];
                input.resize(FRAME, fill);
                check(target, &input);
                check(target, &input[1..]);
                check(target, &input[2..]);
            }
        }
    }
}
