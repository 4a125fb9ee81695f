//! The command line as people and scripts meet it: help, exit codes, one clear line for each mistake.

use std::fs::File;
use std::path::Path;

use assert_cmd::Command;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const UNREACHABLE: i32 = 5;

/// The binary, in `dir` and without settings of the environment.
fn perennial(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PERENNIAL_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir).args(args);
    command
}

/// Runs it to its end; gives the code, stdout and stderr.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = perennial(dir, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn every_command_has_help_with_examples_on_stdout() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["serve", "dev", "demo", "call", "status", "reminder", "dead", "bench", "cert", "key"] {
        let (code, out, err) = run(dir.path(), &[command, "--help"]);
        assert_eq!((code, err.as_str()), (0, ""), "{command}");
        assert!(out.contains("Examples:") && out.contains(&format!("perennial {command}")), "{out}");
        let (_, all, _) = run(dir.path(), &["--help"]);
        assert!(all.contains(&format!("\n  {command} ")), "{all}");
    }
    let (code, out, _) = run(dir.path(), &["--version"]);
    assert_eq!((code, out), (0, format!("perennial {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["srve"][..],
        &["dev", "--nodes", "0"],
        &["dev", "--http-port", "0"],
        &["dev", "--log", "a=b=c"],
        &["dev", "--nodes", "3", "--log", "a=b=c"],
        &["demo", "--seconds", "1"],
        &["call", "Cart"],
        &["call", "Cart/", "clear"],
        &["call", "Cart/alice", "add", "tea"],
        &["call", "Cart/alice", "add", "qty=1", "qty=2"],
        &["call", "Cart/alice", "add", "qty:=one"],
        &["call", "Cart/alice", "add", "--timeout", "soon"],
        &["status", "--address", "127.0.0.1:1"],
        &["dead", "show", "17"],
        &["dead", "retry"],
        &["dead", "retry", "--all", "Cart", "Stock"],
        &["dead", "drop"],
        &["bench", "--idle", "--hot"],
        &["reminder", "lists"],
        &["timer", "list", "--due-before", "soon"],
        &["reminder", "cancel", "Cart/alice"],
        &["serve", "--node-id", "N 1"],
        &["cert", "nodes"],
        &["cert", "node", "--dir", "nowhere"],
        &["key", "Shop Web"],
    ] {
        let (code, out, err) = run(dir.path(), args);
        assert_eq!((code, out.as_str()), (USAGE, ""), "{args:?}: {err}");
        assert!(err.starts_with("error: "), "{args:?}: {err}");
    }
}

#[test]
fn a_mistake_in_an_argument_says_what_the_handler_takes() {
    let dir = tempfile::tempdir().unwrap();
    let (_, _, err) = run(dir.path(), &["call", "Cart/alice", "add", "tea"]);
    assert!(err.contains("\"tea\"") && err.contains("\"qty\": u32"), "{err}");
}

#[test]
fn a_mistake_says_what_to_write_instead() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("file", "no TOML");
    assert_eq!(run(dir.path(), &["cert", "throwaway", "n1"]).0, 0);
    let at = |address| {
        let tls =
            ["--tls-ca", "certs/ca.pem", "--tls-cert", "certs/nobody.pem", "--tls-key", "certs/nobody.key"];
        [&["status", "--address", address][..], &tls].concat()
    };
    for (args, code, parts) in [
        (vec!["call", "Cart", "clear"], USAGE, ["\"Cart\" has no key", "KIND/KEY"]),
        (vec!["reminder", "list", "Cart"], USAGE, ["\"Cart\" has no key", "KIND/KEY"]),
        (vec!["call", "Cart/a", "clear", "--timeout", "soon"], USAGE, ["soon", "10s, 500ms, 2m or 1h"]),
        (vec!["status", "--cluster", "file"], USAGE, ["cannot read file", "cluster.toml"]),
        (at("localhost"), USAGE, ["\"localhost\"", "HOST:PORT"]),
        (at("127.0.0.1:1"), FAILED, ["certs/nobody.pem", "--tls-cert"]),
        (vec!["dev", "--data", "file"], FAILED, ["file is not a folder", "--data"]),
        (vec!["dev", "--log", "a=b=c"], USAGE, ["a=b=c", "perennial=debug"]),
        (
            vec!["dev", "--data", "d", "--nodes", "3", "--http-port", "65534"],
            FAILED,
            ["65534", "--http-port"],
        ),
        (vec!["cert", "ca", "--dir", "file"], FAILED, ["file is not a folder", "--dir"]),
        (vec!["serve", "--config", "nowhere.toml"], USAGE, ["nowhere.toml", "not found"]),
        (vec!["serve", "--auth", "nowhere.toml"], USAGE, ["auth nowhere.toml", "no such file"]),
    ] {
        let (ended, out, err) = run(dir.path(), &args);
        assert_eq!((ended, out.as_str()), (code, ""), "{args:?}: {err}");
        assert!(parts.iter().all(|part| err.contains(part)), "{args:?}: {err}");
    }
    let (_, _, err) = run(dir.path(), &["serve", "--config", "nowhere.toml"]);
    assert!(!err.contains("node_id"), "what the file may hold is not missing: {err}");
}

#[test]
fn standard_input_must_be_an_object() {
    let dir = tempfile::tempdir().unwrap();
    let call = ["call", "Cart/alice", "add", "-"];
    let output = perennial(dir.path(), &call).write_stdin("[1]").output().unwrap();
    assert_eq!(output.status.code(), Some(USAGE));
    let output = perennial(dir.path(), &call).write_stdin("{\"qty\":1}").output().unwrap();
    assert_eq!(output.status.code(), Some(UNREACHABLE), "the arguments were fine, but there is no cluster");
}

#[test]
fn a_cluster_that_is_not_there_is_one_line_and_a_code_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(run(dir.path(), &["cert", "throwaway", "n1"]).0, 0);
    let tls = ["--tls-ca", "certs/ca.pem", "--tls-cert", "certs/client.pem", "--tls-key", "certs/client.key"];
    // Port 1 of loopback: nobody listens there.
    let at = [&["--address", "127.0.0.1:1"][..], &tls].concat();
    for (args, part) in [
        (vec!["status"], "perennial dev"),
        (vec!["call", "Cart/alice", "clear"], "perennial dev"),
        (vec!["dead", "list"], "perennial dev"),
        ([&["status"][..], &at].concat(), "127.0.0.1:1"),
        ([&["call", "Cart/alice", "clear"][..], &at].concat(), "127.0.0.1:1"),
        ([&["bench"][..], &at].concat(), "127.0.0.1:1"),
    ] {
        let (code, out, err) = run(dir.path(), &args);
        assert_eq!((code, out.as_str()), (UNREACHABLE, ""), "{args:?}: {err}");
        assert!(err.contains(part) && err.lines().count() == 1, "{args:?}: {err}");
    }
}

#[test]
fn settings_are_refused_with_every_problem_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = "listen = \"0.0.0.0:7001\"\npartitions = 48\nwieght = 3\nweight = \"heavy\"\n";
    std::fs::write(dir.path().join("n1.toml"), file).unwrap();
    let (code, _, err) = run(dir.path(), &["serve", "--config", "n1.toml", "--http", "0.0.0.0:8080"]);
    assert_eq!(code, USAGE, "{err}");
    for part in
        ["node_id", "data", "tls_ca", "--advertise", "48", "\"wieght\"", "n1.toml: weight", "--http-insecure"]
    {
        assert!(err.contains(part), "{part} is not in:\n{err}");
    }
}

#[test]
fn the_environment_beats_the_file_and_a_flag_beats_both() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("n1.toml"), "partitions = 48\n").unwrap();
    let refused = |args: &[&str], environment: &str| {
        let output = perennial(dir.path(), &[&["serve", "--config", "n1.toml"][..], args].concat())
            .env("PERENNIAL_PARTITIONS", environment)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&[], "96").contains("partitions is 96"));
    assert!(refused(&["--partitions", "80"], "96").contains("partitions is 80"));
    assert!(!refused(&["--partitions", "64"], "96").contains("partitions is"));
}

#[test]
fn throw_away_certificates_are_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = run(dir.path(), &["cert", "throwaway", "n1", "n2", "--dir", "tls"]);
    assert_eq!((code, out.as_str()), (0, "tls/n1.pem\ntls/n2.pem\ntls/client.pem\n"));
    let (code, _, err) = run(dir.path(), &["cert", "throwaway", "n3", "--dir", "tls"]);
    assert_eq!(code, FAILED);
    assert!(err.contains("tls/ca.pem"), "{err}");
    let (code, _, err) = run(dir.path(), &["cert", "node", "n3", "--dir", "tls"]);
    assert_eq!(code, FAILED);
    assert!(err.contains("tls/ca.key"), "its key is forgotten: {err}");
}

#[test]
fn an_authority_is_kept_and_signs_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = run(dir.path(), &["cert", "ca"]);
    assert_eq!((code, out.as_str()), (0, "certs/ca.pem\ncerts/ca.key\n"));
    let (code, _, err) = run(dir.path(), &["cert", "ca"]);
    assert_eq!(code, FAILED);
    assert!(err.contains("not overwritten") && err.lines().count() == 1, "{err}");
    let (code, out, _) = run(dir.path(), &["cert", "node", "n1", "n2", "--name", "localhost"]);
    assert_eq!((code, out.as_str()), (0, "certs/n1.pem\ncerts/n2.pem\n"));
    assert_eq!(run(dir.path(), &["cert", "client", "backoffice"]).0, 0);
    let (code, _, err) = run(dir.path(), &["cert", "node", "n1"]);
    assert_eq!(code, FAILED);
    assert!(err.contains("--renew"), "{err}");
    assert_eq!(run(dir.path(), &["cert", "node", "n1", "--renew"]).0, 0);
}

#[test]
fn a_key_is_shown_once_and_its_hash_is_what_the_policy_needs() {
    let dir = tempfile::tempdir().unwrap();
    let (code, key, policy) = run(dir.path(), &["key", "shop-web", "--group", "web"]);
    assert_eq!(code, 0);
    assert!(key.starts_with("perennial_shop-web_") && key.lines().count() == 1, "{key}");
    assert!(policy.contains("[[key]]\nname = \"shop-web\"\nsha256 = \""), "{policy}");
    assert!(policy.contains("groups = [\"web\"]") && !policy.contains(key.trim()), "{policy}");
}

#[test]
fn a_wrong_policy_is_told_line_by_line() {
    let dir = tempfile::tempdir().unwrap();
    let policy = "\
[[key]]
name = \"shop-web\"
sha256 = \"abc\"

[[allow]]
who = \"key:shopweb\"
kind = \"Crt\"
methods = \"add\"

[[allow]]
who = \"anonymous\"
kind = \"Cart\"
methods = [\"ad\", \"events\"]
key_prefix = \"{sub}\"
keys = \"x\"
";
    std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
    let (code, _, err) = run(dir.path(), &["serve", "--http", "127.0.0.1:8080", "--auth", "policy.toml"]);
    assert_eq!(code, USAGE, "{err}");
    for part in [
        "policy.toml line 3: sha256 is not 64",
        "policy.toml line 6: no [[key]] is named \"shopweb\"",
        "policy.toml line 7: unknown kind \"Crt\"",
        "policy.toml line 13: Cart has no handler \"ad\"; there are: ",
        "policy.toml line 14: key_prefix \"{sub}\" would let al reach alice",
        "policy.toml line 14: \"{sub}\" is for holders of tokens",
        "policy.toml line 15: [[allow]] has no setting \"keys\"",
    ] {
        assert!(err.contains(part), "{part} is not in:\n{err}");
    }
}

#[test]
fn a_folder_belongs_to_one_dev() {
    let dir = tempfile::tempdir().unwrap();
    let lock = File::create(dir.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let (code, _, err) = run(dir.path(), &["dev", "--data", "."]);
    assert_eq!(code, FAILED);
    assert!(err.contains("another dev") && err.contains("--data"), "{err}");
}

#[test]
fn a_folder_keeps_its_number_of_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let node =
        |id: &str| format!("[[nodes]]\nid = {id:?}\naddress = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"\n");
    let tls = "[tls]\nca = \"ca\"\ncert = \"cert\"\nkey = \"key\"\n";
    let file = format!("app = \"x\"\naddresses = []\n{tls}{}{}{}", node("n1"), node("n2"), node("n3"));
    std::fs::write(dir.path().join("cluster.toml"), file).unwrap();
    let (code, _, err) = run(dir.path(), &["dev", "--data", ".", "--nodes", "1"]);
    assert_eq!(code, FAILED);
    assert!(err.contains("--nodes 3"), "{err}");
}
