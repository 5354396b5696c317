//! backup: the sealed data, and the keys for a recipient; all that was asked for, or no file at all.

use serde_json::json;

use super::access::Access;
use super::args::BackupOptions;
use super::fault::Fault;
use super::output::Output;
use crate::app;
use crate::model::{Ask, SecretValue};

pub async fn backup(options: BackupOptions, access: &Access, output: &Output) -> Result<(), Fault> {
    if options.new_recipient {
        let (public, private) = app::new_recipient().map_err(|error| Fault::of(&error))?;
        app::write_private(&options.file, private.expose()).map_err(|error| Fault::of(&error))?;
        output.result(&public, &json!({ "recipient": public, "private_key": options.file }));
        return Ok(());
    }
    for file in [Some(&options.file), options.keys.as_ref()].into_iter().flatten() {
        if file.symlink_metadata().is_ok() {
            let fault = Fault::failed(format!("`{}` is there already", file.display()));
            return Err(fault.hint("a backup is never written over another; name a new file"));
        }
    }
    let asking = access.connect().await?;
    // Nothing is written before all is there: half a backup could be taken for a whole one.
    let (_, data) = asking.ask(Ask::BackupData {}, SecretValue::empty()).await?;
    let keys = match (&options.keys, options.recipient) {
        (Some(file), Some(recipient)) => {
            let asked = asking.ask(Ask::BackupKeys { recipient }, SecretValue::empty()).await;
            Some((file, asked?.1))
        }
        _ => None,
    };
    app::write_private(&options.file, data.body.expose()).map_err(|error| Fault::of(&error))?;
    if let Some((file, keys)) = keys
        && let Err(error) = app::write_private(file, keys.body.expose())
    {
        let _ = std::fs::remove_file(&options.file); // it is ours: it was not there before
        return Err(Fault::of(&error));
    }
    output.result(
        &format!("wrote {}", options.file.display()),
        &json!({ "data": options.file, "keys": options.keys }),
    );
    Ok(())
}
