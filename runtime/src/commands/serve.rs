//! `serve`: one node of a cluster, until it is told to stop.
//!
//! Owns the order of start (port, gateway, ready) and of stop (not ready, drain, gateway, flush), which
//! the embedded node of `dev` shares.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use perennial::node::{Backend, NodeConfig};
use perennial::{App, Node};
use tokio::sync::oneshot;

use super::Interrupts;
use crate::exit::{CommandError, Exit};
use crate::gateway::{Gateway, GatewayConfig};
use crate::output::{self, LogFormat};
use crate::settings::{ServeArgs, SettingsError};

/// How often a node that is not ready is asked what it waits for.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// Grace of a node whose owner is gone: others are likely stopping too, so nothing can be handed over.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);

pub(crate) async fn run(app: App, args: ServeArgs) -> Result<Exit, CommandError> {
    let settings = args.resolve(app.kinds())?;
    output::start_logs(&settings.log, settings.log_format)
        .map_err(|problem| SettingsError { problems: vec![problem] })?;
    let stages = Stages { node: settings.node.node.to_string(), format: settings.log_format };
    let mut stop = StopSignals::new(settings.exit_with_stdin)?;

    let scheme = |tls: bool| if tls { "https" } else { "http" };
    let (web, admin) = (
        scheme(settings.gateway.tls.is_some()),
        scheme(settings.gateway.admin.as_ref().is_some_and(|admin| admin.tls.is_some())),
    );
    let open = if settings.gateway.policy.is_none() { ", open to everybody who reaches it" } else { "" };
    let running = Running::start(app, settings.node, settings.http, settings.gateway).await?;
    stages.tell(&format!("listening on {}", running.node.address()));
    if let Some(gateway) = &running.gateway {
        if let Some(address) = gateway.address() {
            stages.tell(&format!("gateway on {web}://{address}{open}"));
        }
        if let Some(address) = gateway.admin() {
            stages.tell(&format!("admin port on {admin}://{address}"));
        }
    }
    let why = tokio::select! {
        failed = running.run(|stage| stages.tell(stage)) => return Err(failed),
        why = stop.next() => why,
    };
    let grace = match why {
        Stop::Told => {
            stages.tell("draining: giving leaderships away, then stopping (Ctrl-C again stops at once)");
            settings.grace
        }
        Stop::OwnerGone => {
            stages.tell("stopping: whoever started this node is gone");
            ORPHAN_GRACE.min(settings.grace)
        }
    };
    tokio::select! {
        () = running.stop(grace) => {}
        _ = stop.next() => return Err(CommandError::Interrupted),
    }
    stages.tell("stopped");
    Ok(Exit::Ok)
}

/// A node with its gateway.
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) gateway: Option<Gateway>,
}

impl Running {
    /// Opens all ports.
    pub(super) async fn start(
        app: App,
        config: NodeConfig,
        http: Option<SocketAddr>,
        gateway: GatewayConfig,
    ) -> Result<Self, CommandError> {
        let node = Node::start(config, app).await?;
        if http.is_none() && gateway.admin.is_none() {
            return Ok(Self { node, gateway: None });
        }
        let backend: Arc<dyn Backend> = Arc::new(node.clone());
        match Gateway::bind(http, backend, gateway).await {
            Ok(gateway) => Ok(Self { node, gateway: Some(gateway) }),
            Err(error) => {
                node.stop(ORPHAN_GRACE).await;
                Err(error.into())
            }
        }
    }

    /// Tells each stage up to readiness, then runs on. Returns only if the node had to stop by itself.
    pub(super) async fn run(&self, tell: impl FnMut(&str)) -> CommandError {
        tokio::select! {
            why = self.node.failed() => CommandError::Failed(format!("the node stopped: {why}")),
            never = self.stages(tell) => match never {},
        }
    }

    async fn stages(&self, mut tell: impl FnMut(&str)) -> Infallible {
        self.until_ready(&mut tell).await;
        tell("ready");
        std::future::pending().await
    }

    /// Tells each stage until the node is ready.
    async fn until_ready(&self, mut tell: impl FnMut(&str)) {
        let mut progress = self.node.progress();
        let (mut staged, mut told) = (String::new(), String::new());
        let mut look = tokio::time::interval(LOOK_PERIOD);
        look.reset();
        loop {
            let now = tokio::select! {
                () = self.node.wait_ready() => return,
                Ok(stage) = progress.wait_for(|stage| *stage != staged) => {
                    staged.clone_from(&stage);
                    staged.clone()
                }
                // Once it is in a cluster, only this tells what it waits for.
                _ = look.tick() => self.node.ready().err().unwrap_or_default(),
            };
            if !now.is_empty() && now != told {
                tell(&now);
                told = now;
            }
        }
    }

    /// Says that it is not ready any more, gives leaderships away while calls are still taken and
    /// forwarded, finishes the gateway's calls, and stops the node. `grace` bounds each of the steps.
    pub(super) async fn stop(self, grace: Duration) {
        if let Some(gateway) = &self.gateway {
            gateway.drain();
        }
        self.node.drain(grace).await;
        if let Some(gateway) = self.gateway {
            gateway.stop(grace).await;
        }
        self.node.stop(Duration::ZERO).await;
    }
}

/// One line for each stage on stderr.
struct Stages {
    node: String,
    format: LogFormat,
}

impl Stages {
    fn tell(&self, stage: &str) {
        match self.format {
            LogFormat::Plain => output::say(&format!("{}: {stage}", self.node)),
            LogFormat::Json => tracing::info!(node = self.node, "{stage}"),
        }
    }
}

/// Why a node stops.
enum Stop {
    Told,
    OwnerGone,
}

struct StopSignals {
    interrupts: Interrupts,
    owner_gone: Option<oneshot::Receiver<()>>,
}

impl StopSignals {
    fn new(exit_with_stdin: bool) -> Result<Self, CommandError> {
        Ok(Self { interrupts: Interrupts::new()?, owner_gone: exit_with_stdin.then(end_of_stdin) })
    }

    async fn next(&mut self) -> Stop {
        let Some(owner_gone) = &mut self.owner_gone else {
            self.interrupts.next().await;
            return Stop::Told;
        };
        tokio::select! {
            () = self.interrupts.next() => Stop::Told,
            _ = owner_gone => {
                self.owner_gone = None;
                Stop::OwnerGone
            }
        }
    }
}

/// Resolves at the end of the standard input. A thread of its own, as nothing can cancel such a read.
fn end_of_stdin() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    end
}
