//! A few seeds of the simulation, and what it must find. More of them: `tests/README.md`.

use std::process::{Command, Output};

/// Seeds that are always run, the first ones there are.
const SEEDS: &str = "12";

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simulate"))
        .args(arguments)
        .output()
        .expect("the simulation can be started")
}

fn ends_well(arguments: &[&str]) -> String {
    let output = simulate(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn the_first_seeds_keep_every_promise() {
    ends_well(&["--seeds", SEEDS]);
}

#[test]
fn seeds_that_once_found_something_keep_every_promise() {
    let seeds = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds: Vec<_> = seeds.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(!seeds.is_empty());
    for seed in seeds {
        ends_well(&["--seed", seed]);
    }
}

#[test]
fn the_same_seed_twice_gives_the_same_bytes() {
    // In the second, nodes end and say why.
    for seed in ["4", "633"] {
        let once = ends_well(&["--seed", seed]);
        assert!(once.contains("digest"), "{once}");
        assert_eq!(once, ends_well(&["--seed", seed]));
    }
}

/// Plants a mistake, which one of so many seeds must find; the rest is not run then.
fn found(control: &str, from: &str, seeds: &str) {
    let text = ends_well(&["--control", control, "--from", from, "--seeds", seeds]);
    assert!(text.contains("is found by seed"), "{text}");
}

#[test]
fn a_build_that_drops_what_it_does_not_know_is_found() {
    found("careless-build", "1", "10");
}

#[test]
fn a_disk_that_lies_is_found() {
    found("flush-skipped", "1", "10");
}

#[test]
fn forgotten_replies_are_found() {
    found("dedup-off", "1", "10");
}

#[test]
fn entries_in_the_wrong_order_are_found() {
    found("out-of-order", "1", "10");
}

#[test]
fn answers_before_the_commit_are_found() {
    found("early-answer", "3", "10");
}

#[test]
fn reads_without_a_round_are_found() {
    found("dirty-read", "77", "40");
}

#[test]
fn a_driver_without_fences_is_found() {
    found("fence-removed", "22", "40");
}
