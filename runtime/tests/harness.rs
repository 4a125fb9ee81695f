//! Node processes come and go, and none outlives its owner. A shell script stands in for a node: what
//! matters here is the process, not what it does.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use perennial_runtime::harness::{ClusterFile, ClusterSpec, HarnessError, ProcessCluster};

/// A program that says hello and then does `then`.
fn program(dir: &Path, then: &str) -> PathBuf {
    let path = dir.join("program");
    std::fs::write(&path, format!("#!/bin/sh\necho started \"$@\" >&2\n{then}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A program that runs until its standard input ends.
const UNTIL_INPUT_ENDS: &str = "exec cat >/dev/null";

fn gone(pid: u32) -> bool {
    kill(Pid::from_raw(pid as i32), None) == Err(Errno::ESRCH)
}

fn spec(dir: &Path, then: &str) -> ClusterSpec {
    ClusterSpec::new(3, dir.join("cluster"), program(dir, then))
}

#[tokio::test]
async fn dropping_a_cluster_kills_and_reaps_every_node() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = ProcessCluster::start(spec(dir.path(), "trap '' TERM; exec sleep 600")).await.unwrap();
    let pids: Vec<_> = cluster.pids().into_iter().flatten().collect();
    assert_eq!(pids.len(), 3);
    assert!(pids.iter().all(|&pid| !gone(pid)));
    drop(cluster);
    assert!(pids.iter().all(|&pid| gone(pid)));
}

#[tokio::test]
async fn a_killed_node_is_reaped_and_starts_again_on_its_ports() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = ProcessCluster::start(spec(dir.path(), UNTIL_INPUT_ENDS)).await.unwrap();
    let (before, http) = (cluster.pids(), cluster.http());
    cluster.kill9(1).await;
    assert!(gone(before[1].unwrap()));
    assert_eq!(cluster.pids()[1], None);
    cluster.restart(1).await.unwrap();
    assert_ne!(cluster.pids()[1], before[1]);
    assert_eq!((cluster.pids()[0], cluster.http()), (before[0], http));
    let file = ClusterFile::read(&dir.path().join("cluster/cluster.toml")).unwrap();
    assert_eq!(file.nodes.iter().map(|node| node.pid).collect::<Vec<_>>(), cluster.pids());
}

#[tokio::test]
async fn a_node_that_ends_by_itself_is_told_with_the_end_of_its_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster =
        ProcessCluster::start(spec(dir.path(), "echo the disk is on fire >&2; exit 3")).await.unwrap();
    let died = loop {
        match cluster.waiting_for().await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(matches!(died, HarnessError::Died { .. }), "{died}");
    let text = died.to_string();
    assert!(text.contains("the disk is on fire") && text.contains("exit status: 3"), "{text}");
    assert!(text.contains("started serve --exit-with-stdin --node-id n"), "{text}");
}

#[tokio::test]
async fn an_exit_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let then = "case \"$*\" in *'--node-id n2'*) exit 7;; esac; exec cat >/dev/null";
    let mut cluster = ProcessCluster::start(spec(dir.path(), then)).await.unwrap();
    let (at, status) = cluster.next_exit().await;
    assert_eq!((at, status.code()), (1, Some(7)));
    assert_eq!(cluster.pids().into_iter().flatten().count(), 2);
}

#[tokio::test]
async fn nodes_that_do_not_stop_when_told_are_killed_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = ProcessCluster::start(spec(dir.path(), "trap '' TERM; exec sleep 600")).await.unwrap();
    let pids: Vec<_> = cluster.pids().into_iter().flatten().collect();
    cluster.stop(std::time::Duration::from_millis(10)).await;
    assert!(pids.iter().all(|&pid| gone(pid)));
}
