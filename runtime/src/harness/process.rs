//! One node process: start, kill, reap.

use std::fs::File;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perennial::core::id::NodeId;
use perennial::node::TlsFiles;
use tokio::process::{Child, ChildStdin, Command};

use super::{ClusterSpec, HarnessError};

/// Prefix of the environment variables that settings are read from.
const ENV_PREFIX: &str = "PERENNIAL_";
/// Lines of a dead node's log to show.
const TAIL_LINES: usize = 12;
/// Longest part of a log that is read for them.
const TAIL_BYTES: usize = 16 * 1024;
/// How long a process killed by a signal may take to be gone.
const REAP_MAX: Duration = Duration::from_secs(5);

/// Ports of a node on loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// For nodes and clients.
    pub node: u16,
    /// Of the gateway.
    pub http: u16,
}

/// A node's process, running or down.
///
/// Invariant: a process that was started is reaped before this value is gone or starts another.
pub(super) struct NodeProcess {
    pub(super) id: NodeId,
    pub(super) ports: Ports,
    pub(super) log: PathBuf,
    exe: PathBuf,
    args: Vec<String>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// The node stops when this closes, whatever closes it.
    _stdin: Option<ChildStdin>,
    pid: u32,
}

impl NodeProcess {
    pub(super) fn new(spec: &ClusterSpec, id: NodeId, ports: Ports, join: &[String], tls: &TlsFiles) -> Self {
        let dir = spec.dir.join(id.as_str());
        let mut args = vec!["serve".to_owned(), "--exit-with-stdin".to_owned()];
        for (flag, value) in [
            ("--node-id", id.to_string()),
            ("--listen", format!("127.0.0.1:{}", ports.node)),
            ("--http", format!("127.0.0.1:{}", ports.http)),
            ("--join", join.join(",")),
            ("--bootstrap-expect", spec.nodes.to_string()),
            ("--data", dir.join("data").display().to_string()),
            ("--tls-ca", tls.ca.display().to_string()),
            ("--tls-cert", tls.cert.display().to_string()),
            ("--tls-key", tls.key.display().to_string()),
            ("--partitions", spec.partitions.to_string()),
            ("--replication", spec.replication.to_string()),
            ("--grace", format!("{}ms", spec.grace.as_millis())),
            ("--log", spec.log.clone()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.extend(spec.serve_args.iter().cloned());
        Self { id, ports, log: dir.join("log"), exe: spec.exe.clone(), args, running: None }
    }

    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.node)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.pid)
    }

    /// Another executable from the next start on.
    pub(super) fn set_exe(&mut self, exe: PathBuf) {
        self.exe = exe;
    }

    /// Starts the process; its output goes to the log, appended.
    pub(super) fn spawn(&mut self) -> Result<(), HarnessError> {
        assert!(self.running.is_none(), "a node's process is reaped before the next starts");
        let folder = self.log.parent().expect("the log lies in the node's folder");
        std::fs::create_dir_all(folder).map_err(HarnessError::io(format!("make {}", folder.display())))?;
        let open = || File::options().create(true).append(true).open(&self.log);
        let log = open().map_err(HarnessError::io(format!("open {}", self.log.display())))?;
        let mut command = Command::new(&self.exe);
        without_settings(&mut command);
        let mut child = command
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches the owner only, who stops the nodes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(HarnessError::io(format!("start {}", self.exe.display())))?;
        let pid = child.id().expect("a child that was not waited for has an id");
        // Waiting for a child closes its input, so the pipe is kept apart.
        let stdin = child.stdin.take();
        self.running = Some(Running { child, _stdin: stdin, pid });
        Ok(())
    }

    /// Kills with SIGKILL and reaps, if it runs.
    pub(super) async fn kill9(&mut self) -> Instant {
        if let Some(running) = &mut self.running {
            let _ = running.child.start_kill();
        }
        let killed = Instant::now();
        if let Some(mut running) = self.running.take() {
            let _ = running.child.wait().await;
        }
        killed
    }

    /// Waits until it ends by itself.
    pub(super) async fn exited(&mut self) -> ExitStatus {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let status = running.child.wait().await.expect("a child of ours can be waited for");
        self.running = None;
        status
    }

    /// Fails if it ended by itself since it was last looked at.
    pub(super) fn check_alive(&mut self) -> Result<(), HarnessError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        match running.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                self.running = None;
                Err(HarnessError::Died {
                    node: self.id.clone(),
                    status,
                    log: self.log.clone(),
                    tail: self.log_tail(),
                })
            }
            Err(source) => Err(HarnessError::Io { doing: format!("watch node {}", self.id), source }),
        }
    }

    fn log_tail(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Asks it to stop; kills it after the grace.
    pub(super) async fn stop(&mut self, grace: Duration) {
        if let Some(running) = &mut self.running {
            let _ = kill(Pid::from_raw(running.pid as i32), Signal::SIGTERM);
            let _ = tokio::time::timeout(grace, running.child.wait()).await;
        }
        self.kill9().await;
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let Some(running) = &mut self.running else { return };
        let _ = running.child.start_kill();
        let until = Instant::now() + REAP_MAX;
        // A killed process is gone within moments; there may be no runtime left to wait on.
        while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Keeps settings in this process's environment from a node's command, which has its own.
pub fn without_settings(command: &mut Command) {
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in names.filter(|name| name.to_string_lossy().starts_with(ENV_PREFIX)) {
        command.env_remove(name);
    }
}
