//! `certs`: throw-away certificates for a cluster started by hand.

use crate::certs::throwaway;
use crate::cli::CertsArgs;
use crate::exit::{CommandError, Exit};
use crate::output;

pub(crate) fn run(args: &CertsArgs) -> Result<Exit, CommandError> {
    let ca = args.dir.join("ca.pem");
    if ca.exists() {
        return Err(CommandError::Failed(format!(
            "{} exists: new certificates would not fit it; remove the folder or choose another with --dir",
            ca.display()
        )));
    }
    let made = throwaway(&args.dir, &args.nodes, args.client.as_str())?;
    for files in made.nodes.values().chain([&made.client]) {
        output::data(&files.cert.display().to_string());
    }
    output::say("the authority's own key was not kept: for another node make all certificates again");
    Ok(Exit::Ok)
}
