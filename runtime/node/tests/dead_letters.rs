//! Dead letters of real nodes: shown, sent again and dropped by commands, over the death of their leader.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use perennial::Actors;
use perennial_example_cart::{Cart, Level, OPENING_STOCK, Stock};
use perennial_runtime::harness::{ClusterSpec, ProcessCluster};
use serde_json::Value;

const OK: i32 = 0;
const FAILED: i32 = 1;
/// How long anything may take that must happen; far above what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CALL_MAX: Duration = Duration::from_secs(40);

/// Runs the command `dead` to its end; gives the code, stdout and stderr.
fn dead(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PERENNIAL_") {
            command.env_remove(name);
        }
    }
    let cluster = dir.join("cluster.toml");
    command.current_dir(dir).arg("dead").args(args).arg("--cluster").arg(cluster).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The list as JSON, once it holds so many.
fn listed(dir: &Path, count: usize) -> Vec<Value> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let (code, out, err) = dead(dir, &["list", "-o", "json"]);
        let list: Value = serde_json::from_str(&out).unwrap_or_default();
        let letters = list["letters"].as_array().cloned().unwrap_or_default();
        if code == OK && letters.len() == count {
            return letters;
        }
        assert!(Instant::now() < give_up, "not {count} within {} s: {out}{err}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_was_refused_is_found_and_sent_again_after_its_leader_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ClusterSpec {
        partitions: 8,
        log: "error".into(),
        ..ClusterSpec::new(3, dir.path(), env!("CARGO_BIN_EXE_perennial"))
    };
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    cluster.write_file().unwrap();
    let client = cluster.client().await.unwrap();
    let (alice, stock) = (client.get::<Cart>("alice"), client.get::<Stock>("tea"));
    let held = async |qty| {
        let give_up = Instant::now() + PATIENCE;
        while stock.level().timeout(CALL_MAX).await.unwrap().held != qty {
            assert!(Instant::now() < give_up, "{qty} pieces are not held");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };

    // Somebody takes out of the shelf's books what alice has, so that what her cart gives back is refused.
    alice.add("tea".into(), 2, 250).timeout(CALL_MAX).await.unwrap();
    held(2).await;
    stock.release(2).timeout(CALL_MAX).await.unwrap();
    alice.clear().timeout(CALL_MAX).await.unwrap();
    let letters = listed(dir.path(), 1);
    assert_eq!((&letters[0]["code"], &letters[0]["sender"]), (&"app".into(), &"Cart/alice".into()));
    assert_eq!(letters[0]["why"], r#"{"NotHeld":{"held":0}}"#);
    let id = letters[0]["id"].as_str().unwrap();

    let restocked = client.get::<Stock>("tea").restock(1).timeout(CALL_MAX).detailed().await;
    restocked.result.unwrap();
    let leader = cluster.position(&restocked.node.unwrap()).unwrap();
    cluster.kill9(leader).await;
    let (code, out, err) = dead(dir.path(), &["show", id]);
    assert_eq!(code, OK, "{err}");
    for part in [id, "Cart/alice", "Stock/tea", "release", "NotHeld", "\"qty\": 2", "after 1 tries"] {
        assert!(out.contains(part), "{part} is not in:\n{out}");
    }
    let gateway = cluster.http()[usize::from(leader == 0)].clone();
    let gateway = if gateway.contains("://") { gateway } else { format!("http://{gateway}") };
    let shown: Value = reqwest::get(format!("{gateway}/v1/dead/{id}")).await.unwrap().json().await.unwrap();
    assert_eq!((&shown["id"], &shown["args"]["qty"]), (&letters[0]["id"], &2.into()));

    // Still refused: another letter. Once bob has two pieces of his own it goes through.
    assert_eq!(dead(dir.path(), &["retry", id]).0, OK);
    let again = listed(dir.path(), 1)[0]["id"].as_str().unwrap().to_owned();
    assert_ne!(again, id);
    let (code, _, err) = dead(dir.path(), &["retry", id]);
    assert_eq!((code, err.contains("there is no dead letter")), (FAILED, true), "{err}");
    client.get::<Cart>("bob").add("tea".into(), 2, 250).timeout(CALL_MAX).await.unwrap();
    held(2).await;
    let (code, out, err) = dead(dir.path(), &["retry", "--all", "Stock/tea"]);
    assert_eq!((code, out.as_str()), (OK, "1 retried\n"), "{err}");
    held(0).await;
    let level = stock.level().timeout(CALL_MAX).await.unwrap();
    assert_eq!(level, Level { available: i64::from(OPENING_STOCK) + 1, ..Level::default() });
    assert_eq!(dead(dir.path(), &["list"]).1, "0 shown, 0 kept\n");

    // What nobody wants is dropped.
    client.get::<Cart>("bob").clear().timeout(CALL_MAX).await.unwrap();
    let id = listed(dir.path(), 1)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(dead(dir.path(), &["drop", &id]).0, OK);
    listed(dir.path(), 0);
    cluster.stop(Duration::from_secs(5)).await;
}
