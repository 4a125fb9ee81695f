//! Finding the cluster that a command talks to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use perennial::Client;
use perennial::client::{ClientConfig, ConnectError};
use perennial::node::TlsFiles;

use crate::cli::{CLUSTER_FILE, DEV_DATA_DEFAULT, TargetArgs};
use crate::exit::CommandError;
use crate::harness::{ClusterFile, HarnessError, TlsEntry};
use crate::settings::is_host_port;

/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What to look at when nobody answers at an address.
const ADDRESS_HINT: &str =
    "check that it runs, and that --address names its port for nodes (--listen), not its gateway";

/// A cluster to talk to and what to say when it does not answer.
pub(super) struct Target {
    pub(super) file: ClusterFile,
    hint: String,
}

impl Target {
    /// The cluster that the arguments name, or else the one that `dev` runs here.
    pub(super) fn of(args: &TargetArgs, program: &str) -> Result<Self, CommandError> {
        if let (false, Some(ca), Some(cert), Some(key)) =
            (args.address.is_empty(), &args.tls_ca, &args.tls_cert, &args.tls_key)
        {
            if let Some(wrong) = args.address.iter().find(|address| !is_host_port(address)) {
                return Err(CommandError::Usage(format!("--address {wrong:?} is not HOST:PORT")));
            }
            let tls = TlsEntry { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
            let file =
                ClusterFile { app: String::new(), addresses: args.address.clone(), tls, nodes: Vec::new() };
            return Ok(Self { file, hint: ADDRESS_HINT.into() });
        }
        let path = args.cluster.clone().unwrap_or_else(default_file);
        if !path.exists() {
            return Err(CommandError::NoCluster(no_file(&path, program)));
        }
        let file = ClusterFile::read(&path).map_err(|error: HarnessError| {
            CommandError::Usage(format!("{error}; --cluster names the {CLUSTER_FILE} in a folder of dev"))
        })?;
        let hint = format!("{} names it; is it still running? `{program} dev` starts one", path.display());
        Ok(Self { file, hint })
    }

    pub(super) async fn connect(&self) -> Result<Client, CommandError> {
        let tls: TlsFiles = self.file.tls.clone().into();
        let addresses = self.file.addresses.clone();
        let connected = Client::connect(ClientConfig { addresses: addresses.clone(), tls });
        let error = match tokio::time::timeout(CONNECT_MAX, connected).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error,
            Err(_) => {
                let why = format!("no answer within {} s", CONNECT_MAX.as_secs());
                ConnectError::Unreachable { addresses, why }
            }
        };
        let hint = match error {
            ConnectError::Tls { .. } => {
                "name those of a client with --tls-ca, --tls-cert and --tls-key".into()
            }
            _ => self.hint.clone(),
        };
        Err(CommandError::Connect { error, hint })
    }
}

fn default_file() -> PathBuf {
    Path::new(DEV_DATA_DEFAULT).join(CLUSTER_FILE)
}

fn no_file(path: &Path, program: &str) -> String {
    format!(
        "no cluster is known: {} does not exist; start one with `{program} dev`, or name one with --cluster or --address",
        path.display()
    )
}
