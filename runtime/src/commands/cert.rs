//! `cert`: the authority of a cluster, and the certificates it signs.

use std::path::Path;

use perennial::node::TlsFiles;

use crate::certs::{Authority, Holder, throwaway};
use crate::cli::{CertArgs, CertCommand, CertIssue};
use crate::exit::{CommandError, Exit};
use crate::output;

pub(crate) fn run(args: &CertArgs) -> Result<Exit, CommandError> {
    match &args.what {
        CertCommand::Ca { folder, days } => {
            Authority::make("perennial cluster authority", *days)?.keep(&folder.dir)?;
            for name in ["ca.pem", "ca.key"] {
                show(&folder.dir.join(name));
            }
            output::say("whoever has ca.key can be any node and any client: keep it off the nodes");
        }
        CertCommand::Node { nodes, name, issue } => {
            let holders: Vec<_> =
                nodes.iter().map(|id| Holder::Node { id: id.clone(), names: name.clone() }).collect();
            issued(issue, &holders)?;
        }
        CertCommand::Client { name, issue } => issued(issue, &[Holder::Client(name.clone())])?,
        CertCommand::Throwaway { nodes, client, folder } => {
            let ca = folder.dir.join("ca.pem");
            if ca.exists() {
                return Err(CommandError::Failed(format!(
                    "{} exists: new certificates would not fit it; remove the folder or choose another with --dir",
                    ca.display()
                )));
            }
            let made = throwaway(&folder.dir, nodes, client.as_str())?;
            made.nodes.values().chain([&made.client]).for_each(|files| show(&files.cert));
            output::say("the authority's own key was not kept: for another node make all certificates again");
        }
    }
    Ok(Exit::Ok)
}

fn issued(issue: &CertIssue, holders: &[Holder]) -> Result<(), CommandError> {
    let authority = Authority::load(&issue.folder.dir)?;
    let mut made: Vec<TlsFiles> = Vec::new();
    for holder in holders {
        made.push(authority.issue(&issue.folder.dir, holder, issue.days, issue.renew)?);
    }
    made.iter().for_each(|files| show(&files.cert));
    Ok(())
}

fn show(path: &Path) {
    output::data(&path.display().to_string());
}
