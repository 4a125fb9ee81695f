//! Bad days of node processes: killed, paused, full disk, wrong folder, taken port. Nothing acknowledged
//! is lost, nobody answers what is no longer true, and each mistake is one line that says what to do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perennial::core::id::NodeId;
use perennial::{Actors, Client};
use perennial_runtime::certs::{Throwaway, throwaway};
use perennial_runtime::counter::Counter;
use perennial_runtime::harness::{ClusterSpec, ProcessCluster};

const OK: i32 = 0;
const FAILED: i32 = 1;
const UNREACHABLE: i32 = 5;

/// How long anything may take that must happen; far above what it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one call may take while nodes come and go.
const CALL_MAX: Duration = Duration::from_secs(40);
/// Counters of a test; spread over the partitions.
const COUNTERS: usize = 24;

/// The binary, in `dir` and without settings of the environment.
fn perennial(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PERENNIAL_") {
            command.env_remove(name);
        }
    }
    command.current_dir(dir).args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end; gives the code, stdout and stderr.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = perennial(dir, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Looks again and again until something is there.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < give_up, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn gone(pid: u32) -> bool {
    kill(Pid::from_raw(pid as i32), None) == Err(Errno::ESRCH)
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spec(nodes: usize, dir: &Path) -> ClusterSpec {
    ClusterSpec {
        partitions: 8,
        log: "warn".into(),
        ..ClusterSpec::new(nodes, dir, env!("CARGO_BIN_EXE_perennial"))
    }
}

async fn started(spec: ClusterSpec) -> ProcessCluster {
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    cluster
}

fn key(number: usize) -> String {
    format!("counter-{number}")
}

async fn add(client: &Client, number: usize) -> i64 {
    client.get::<Counter>(key(number)).add(1).timeout(CALL_MAX).await.unwrap()
}

async fn value(client: &Client, number: usize) -> i64 {
    client.get::<Counter>(key(number)).get().timeout(CALL_MAX).await.unwrap()
}

/// Adds 1 to every counter.
async fn add_to_all(client: &Client) {
    for number in 0..COUNTERS {
        add(client, number).await;
    }
}

async fn assert_all(client: &Client, expected: i64) {
    for number in 0..COUNTERS {
        assert_eq!(value(client, number).await, expected, "{}", key(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_all_nodes_were_killed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = started(spec(3, dir.path())).await;
    for round in 1..=2 {
        add_to_all(&cluster.client().await.unwrap()).await;
        // Killed first, reaped after: no node sees another one go in good order.
        cluster.pids().into_iter().flatten().for_each(|pid| send(pid, Signal::SIGKILL));
        for node in 0..3 {
            cluster.kill9(node).await;
        }
        for node in 0..3 {
            cluster.restart(node).await.unwrap();
        }
        cluster.wait_ready(PATIENCE).await.unwrap();
        assert_all(&cluster.client().await.unwrap(), round).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_was_paused_never_answers_what_is_no_longer_true() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = started(spec(3, dir.path())).await;
    let client = cluster.client().await.unwrap();
    add_to_all(&client).await;
    let leader = client.get::<Counter>(key(0)).get().timeout(CALL_MAX).detailed().await.node;
    let at = cluster.position(&leader.unwrap()).unwrap();
    let pid = cluster.pids()[at].unwrap();
    let gateway = cluster.http()[at].clone();

    send(pid, Signal::SIGSTOP);
    // The others take over and go on.
    add_to_all(&client).await;
    // Questions that reach it while it is paused are answered when it wakes, as the leader it was.
    let asked: Vec<_> = (0..COUNTERS).map(|number| ask(&gateway, number)).collect();
    send(pid, Signal::SIGCONT);
    for (number, asked) in asked.into_iter().enumerate() {
        let (status, body) = answer(asked);
        assert!(status >= 500 || (status, &*body) == (200, "2"), "{}: {status} {body}", key(number));
    }
    add_to_all(&client).await;
    for number in 0..COUNTERS {
        assert_eq!(answer(ask(&gateway, number)), (200, "3".to_owned()));
    }
}

/// Sends a read over HTTP; it is with the other side's kernel when this returns.
fn ask(gateway: &str, number: usize) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = format!("/v1/perennial.Counter/{}/get", key(number));
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {gateway}\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

/// Status and body of its answer.
fn answer(mut asked: TcpStream) -> (u16, String) {
    let mut text = String::new();
    asked.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn nothing_is_lost_or_doubled_while_leaders_are_killed_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let args =
        ["bench", "--op", "failover", "--kills", "4", "--clients", "16", "--warmup", "1", "-o", "json"];
    let (code, out, err) = run(dir.path(), &args);
    assert_eq!(code, OK, "{out}{err}");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    let told = &told["failover"]["report"];
    assert_eq!((&told["lost"], &told["doubled"]), (&0.into(), &0.into()), "{out}");
    assert!(told["acknowledged"].as_u64().unwrap() > 0, "{out}");
}

/// A folder on a file system of its own, gone with this value.
struct Mounted(PathBuf);

impl Mounted {
    /// `None`, told loudly, for those who may not mount.
    fn new(path: &Path, flags: MsFlags, options: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        match mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)) {
            Ok(()) => Some(Self(path.to_owned())),
            Err(Errno::EPERM) => {
                eprintln!("SKIPPED: mounting a small file system needs root");
                None
            }
            Err(error) => panic!("cannot mount {}: {error}", path.display()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_full_stops_and_says_so_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("n3/data");
    let Some(_mounted) = Mounted::new(&data, MsFlags::empty(), "size=48m") else { return };
    let mut cluster = started(spec(3, dir.path())).await;
    let client = cluster.client().await.unwrap();
    add_to_all(&client).await;
    // Nothing is left but what its files have taken already.
    let full =
        std::io::copy(&mut std::io::repeat(0), &mut std::fs::File::create(data.join("ballast")).unwrap());
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    let mut sums = [1; COUNTERS];
    let mut number = 0;
    let (at, status): (usize, ExitStatus) = loop {
        // Every call is acknowledged, whether the node is still there or not.
        sums[number] = add(&client, number).await;
        number = (number + 1) % COUNTERS;
        if let Ok(exit) = tokio::time::timeout(Duration::from_millis(1), cluster.next_exit()).await {
            break exit;
        }
        assert!(sums[0] < 20_000, "the node does not notice that its disk is full");
    };
    assert_eq!((at, status.code()), (2, Some(FAILED)));
    let log = std::fs::read_to_string(cluster.log(2)).unwrap();
    let last = log.lines().last().unwrap();
    assert!(
        last.starts_with("error: the node stopped: ") && last.contains("No space left on device"),
        "{log}"
    );
    assert!(last.contains("check the disk") && !last.contains("Os {"), "{last}");
    for (number, sum) in sums.iter_mut().enumerate() {
        *sum += 1;
        assert_eq!(add(&client, number).await, *sum);
    }

    mount(None::<&str>, &data, None::<&str>, MsFlags::MS_REMOUNT, Some("size=400m")).unwrap();
    cluster.restart(2).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    // With another node gone, what it has is needed.
    cluster.kill9(0).await;
    for (number, sum) in sums.iter().enumerate() {
        assert_eq!(value(&client, number).await, *sum, "{}", key(number));
    }
}

/// A node's certificates and arguments, in a folder.
fn serve_args<'a>(certs: &'a Throwaway, data: &'a str, listen: &'a str) -> Vec<&'a str> {
    let tls = &certs.nodes[&NodeId::new("n1").unwrap()];
    let text = |path: &'a PathBuf| path.to_str().unwrap();
    let tls = ["--tls-ca", text(&tls.ca), "--tls-cert", text(&tls.cert), "--tls-key", text(&tls.key)];
    [&["serve", "--node-id", "n1", "--log", "warn", "--data", data, "--listen", listen][..], &tls].concat()
}

fn certs(dir: &Path) -> Throwaway {
    throwaway(&dir.join("tls"), &[NodeId::new("n1").unwrap()], "client").unwrap()
}

#[test]
fn a_folder_or_a_port_that_cannot_be_used_is_one_line_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let certs = certs(dir.path());
    std::fs::write(dir.path().join("file"), "").unwrap();
    std::fs::create_dir(dir.path().join("thesis")).unwrap();
    std::fs::write(dir.path().join("thesis/thesis.tex"), "precious").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let refused = |data: &str, listen: &str, more: &[&str], parts: &[&str]| {
        let (code, out, err) = run(dir.path(), &[&serve_args(&certs, data, listen)[..], more].concat());
        assert_eq!((code, out.as_str(), err.lines().count()), (FAILED, "", 1), "{err}");
        assert!(err.starts_with("error: "), "{err}");
        parts.iter().for_each(|part| assert!(err.contains(part), "{part} is not in {err}"));
    };
    refused("file", "127.0.0.1:0", &[], &["data folder file", "not a folder", "--data"]);
    refused("file/below", "127.0.0.1:0", &[], &["data folder file/below", "--data"]);
    refused("thesis", "127.0.0.1:0", &[], &["thesis.tex", "not a data folder", "--data"]);
    refused("data", &taken, &[], &[&taken, "in use", "--listen"]);
    refused("data", "127.0.0.1:0", &["--http", &taken], &[&taken, "in use", "another port"]);
    if let Some(_mounted) = Mounted::new(&dir.path().join("frozen"), MsFlags::MS_RDONLY, "") {
        refused("frozen", "127.0.0.1:0", &[], &["data folder frozen", "Read-only", "--data"]);
        refused("frozen/below", "127.0.0.1:0", &[], &["data folder frozen/below", "Read-only", "--data"]);
    }
    assert_eq!(std::fs::read_dir(dir.path().join("thesis")).unwrap().count(), 1, "nothing was written");

    let (code, _, err) = run(dir.path(), &["dev", "--data", "thesis"]);
    assert_eq!(code, FAILED);
    assert!(err.contains("thesis.tex") && err.contains("--data"), "{err}");
    assert_eq!(std::fs::read_dir(dir.path().join("thesis")).unwrap().count(), 1, "nothing was written");
    let (code, _, err) = run(dir.path(), &["dev", "--data", "file"]);
    assert_eq!((code, err.lines().count()), (FAILED, 1), "{err}");
}

/// A running command, killed when dropped.
struct Started {
    child: Child,
    log: PathBuf,
}

impl Started {
    fn new(dir: &Path, args: &[&str]) -> Self {
        let log = dir.join(format!("log-{}", free_port()));
        let file = std::fs::File::create(&log).unwrap();
        let mut command = perennial(dir, args);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has said something.
    fn says(&mut self, part: &str) {
        until(part, || {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.text());
            self.text().contains(part).then_some(())
        });
    }

    /// Sends a signal and waits for the end.
    fn ends_on(&mut self, signal: Signal) -> ExitStatus {
        send(self.child.id(), signal);
        until("it ends", || self.child.try_wait().unwrap())
    }

    /// The processes it has started.
    fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        let text = std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
        text.collect::<String>().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_that_is_told_to_stop_does_so_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let certs = certs(dir.path());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut node = Started::new(dir.path(), &serve_args(&certs, "data", "127.0.0.1:0"));
        node.says("n1: ready");
        assert_eq!(node.ends_on(signal).code(), Some(OK), "{}", node.text());
        assert!(node.text().ends_with("n1: stopped\n"), "{}", node.text());
    }
    // Also while it waits for others, of whom it tells once.
    let join = format!("127.0.0.1:{}", free_port());
    let args =
        [&serve_args(&certs, "waiting", "127.0.0.1:0")[..], &["--join", &join, "--bootstrap-expect", "2"]];
    let mut node = Started::new(dir.path(), &args.concat());
    node.says("waiting for 1 more node");
    assert_eq!(node.ends_on(Signal::SIGTERM).code(), Some(OK), "{}", node.text());
    assert_eq!(node.text().matches("waiting for 1 more node").count(), 1, "{}", node.text());
}

#[test]
fn no_node_outlives_the_command_that_started_it() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let dev = ["dev", "--nodes", "3", "--data", "dev", "--http-port", &port];
    let demo = ["demo", "--seconds", "60", "--clients", "4"];
    for (args, ready, signal, code) in [
        (&dev[..], "runs on 3 nodes", Signal::SIGTERM, Some(OK)),
        (&dev[..], "runs on 3 nodes", Signal::SIGINT, Some(OK)),
        (&dev[..], "runs on 3 nodes", Signal::SIGKILL, None),
        (&demo[..], "3 nodes are up", Signal::SIGINT, Some(FAILED)),
        (&demo[..], "3 nodes are up", Signal::SIGTERM, Some(FAILED)),
    ] {
        let mut command = Started::new(dir.path(), args);
        command.says(ready);
        let nodes = command.children();
        assert_eq!(nodes.len(), 3, "{args:?}");
        let status = command.ends_on(signal);
        assert_eq!(status.code(), code, "{args:?} {signal}: {}", command.text());
        assert!(code.is_some() || status.signal() == Some(signal as i32));
        nodes.into_iter().for_each(|pid| until("its nodes end", || gone(pid).then_some(())));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_make_no_sense_are_refused_alike_by_command_and_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = started(spec(3, dir.path())).await;
    let call = |args: &[&str]| run(dir.path(), &[&["call", "--cluster", "cluster.toml"][..], args].concat());
    let http = reqwest::Client::builder().no_proxy().timeout(CALL_MAX).build().unwrap();
    let post = async |path: &str, body: String| {
        let url = format!("http://{}/v1/{path}", cluster.http()[0]);
        let answer = http.post(url).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let long = "k".repeat(600);
    for (actor, handler, args, status, code, parts) in [
        ("Crat/alice", "add", &[][..], 404, FAILED, &["unknown kind \"Crat\"", "Cart"][..]),
        ("Cart/alice", "addd", &[], 404, FAILED, &["no handler \"addd\"", "total_cents()"]),
        ("Cart/alice", "add", &["sku=tea"], 400, FAILED, &["missing argument \"qty\"", "\"cents\": u64"]),
        ("Cart/alice", "add", &["sku=tea", "qty=-1", "cents=1"], 400, FAILED, &["expected u32"]),
        ("Cart/alice", "clear", &["x=1"], 400, FAILED, &["unknown argument \"x\""]),
        (&*format!("Cart/{long}"), "clear", &[], 400, 2, &["600 bytes", "512"]),
    ] {
        let (ended, out, err) = call(&[&[actor, handler][..], args].concat());
        assert_eq!((ended, out.as_str()), (code, ""), "{actor} {handler}: {err}");
        let fields: Vec<_> = args
            .iter()
            .map(|arg| arg.split_once('=').unwrap())
            .map(|(name, value)| match value.parse::<i64>() {
                Ok(number) => format!("\"{name}\":{number}"),
                Err(_) => format!("\"{name}\":\"{value}\""),
            })
            .collect();
        let (answered, text) = post(&format!("{actor}/{handler}"), format!("{{{}}}", fields.join(","))).await;
        assert_eq!(answered, status, "{text}");
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        for part in parts {
            assert!(err.contains(part), "{part} is not in {err}");
            assert!(told["message"].as_str().unwrap().contains(part), "{part} is not in {text}");
        }
    }
    // More than a link carries, and more than the gateway takes.
    let big = format!("{{\"sku\":\"{}\",\"qty\":1,\"cents\":1}}", "x".repeat(2 << 20));
    std::fs::write(dir.path().join("big.json"), &big).unwrap();
    let stdin = std::fs::File::open(dir.path().join("big.json")).unwrap();
    let args = ["call", "--cluster", "cluster.toml", "Cart/alice", "add", "-"];
    let output = perennial(dir.path(), &args).stdin(stdin).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(FAILED), "{err}");
    assert!(
        err.contains("the request of Cart/alice has 2097") && err.contains("the limit is 1048576"),
        "{err}"
    );
    assert_eq!(post("Cart/alice/add", big).await.0, 413);

    // Two of three nodes are gone: a code of its own, and nothing was applied.
    assert_eq!(call(&["Cart/alice", "count"]).0, OK);
    cluster.kill9(1).await;
    cluster.kill9(2).await;
    let refused = until("the minority knows", || {
        let (code, _, err) = call(&["Cart/alice", "count", "--timeout", "5s"]);
        (code == UNREACHABLE && err.contains("a majority is needed")).then_some(err)
    });
    assert!(refused.contains("n2 and n3") && refused.lines().count() == 1, "{refused}");
}
