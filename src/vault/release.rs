//! What is given out: a value, names, versions.
//!
//! A value leaves only when every row on the way to it bears its MAC, the version is the granted
//! one to the digest of its ciphertext, and both wraps open. Of names only those leave that the
//! caller may list.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use super::base::{Act, Vault};
use super::envelope::{self, Place};
use super::error::{VaultError, changed};
use super::look::still;
use super::recent::Kept;
use super::rows::{HeadRow, NameRow, SecretRow, Trust, head_key, heads_of, name_key, value_key};
use crate::model::limits::{LIST_BYTES, LIST_EXAMINED, LIST_PAGE, NAME_MAX, VERSIONS_MAX};
use crate::model::{
    Answer, Ask, Failure, Released, SecretItem, SecretName, SecretPrefix, Target, VersionItem,
    VersionState,
};
use crate::store::Table;

/// What a place in a list is sealed under.
const PLACE: &str = "list-place";
/// Names read from the store at once while listing.
const SCAN: usize = 256;

impl Vault {
    /// The granted version's value, or «not modified» when the client has that version.
    pub(super) async fn read(&self, act: &Act<'_>, have: Option<u64>) -> Result<Released, Failure> {
        if let Ask::Read { name, version: None, .. } = act.ask
            && let Some(kept) = self.recent.find(self.store.generation(), name)
        {
            return match kept.target() == *act.target {
                true => self.give(&kept.secret, &kept.head, have, || kept.sealed.clone()),
                false => Err(changed()),
            };
        }
        Box::pin(self.read_anew(act, have)).await
    }

    async fn read_anew(&self, act: &Act<'_>, have: Option<u64>) -> Result<Released, Failure> {
        let before = self.store.generation();
        let seen = self.look(act.ask, Trust::Checked).await?;
        still(act, seen.as_ref())?;
        let Some((secret, head)) = seen.and_then(|seen| Some((seen.secret?.row, seen.head?.row)))
        else {
            return Err(changed());
        };
        let version = head.version;
        let key = value_key(secret.uuid, version);
        let torn = || VaultError::Torn(format!("version {version} of {}", secret.name));
        let row = self.store.get(Table::Versions, &key).await.map_err(VaultError::Store)?;
        let sealed = row.ok_or_else(torn)?.value;
        let given = self.give(&secret, &head, have, || sealed.clone())?;
        if matches!(act.ask, Ask::Read { version: None, .. }) {
            self.recent.keep(before, self.store.generation(), Kept { secret, head, sealed });
        }
        Ok(given)
    }

    /// Opens one version, unless the client has it.
    fn give(
        &self,
        secret: &SecretRow,
        head: &HeadRow,
        have: Option<u64>,
        sealed: impl FnOnce() -> Vec<u8>,
    ) -> Result<Released, Failure> {
        let version = head.version;
        if have == Some(version) {
            return Ok(Released::head(Answer::NotModified { version }));
        }
        let key = self.keyring.key(secret.namespace, head.epoch).map_err(VaultError::Keyring)?;
        let place =
            Place { namespace: secret.namespace, secret: secret.uuid, version, epoch: head.epoch };
        let opened = envelope::open(&key, place, &head.dek.0, sealed());
        let body = opened.map_err(|source| VaultError::Sealed {
            name: secret.name.clone(),
            version,
            source,
        })?;
        Ok(Released { answer: Answer::Secret { version, labels: secret.labels.clone() }, body })
    }

    /// All versions, oldest first. Of a deleted secret every version is shown as deleted.
    pub(super) async fn versions(&self, act: &Act<'_>) -> Result<Released, Failure> {
        let seen = self.look(act.ask, Trust::Checked).await?;
        still(act, seen.as_ref())?;
        let Some(secret) = seen.and_then(|seen| seen.secret).map(|found| found.row) else {
            return Err(changed());
        };
        let torn = || VaultError::Torn(secret.name.to_string());
        let prefix = heads_of(secret.uuid);
        let rows = self.store.scan(Table::Versions, &prefix, None, VERSIONS_MAX).await;
        let rows = rows.map_err(VaultError::Store)?;
        let mut items = Vec::new();
        for (number, (key, row)) in (1..=secret.newest).zip(rows) {
            let head: HeadRow =
                self.rows.open(Table::Versions, &key, &row.value, Trust::Checked).map_err(
                    |source| VaultError::Row { object: secret.name.to_string(), source },
                )?;
            if head.version != number || key != head_key(secret.uuid, number) {
                return Err(torn().into());
            }
            let state = match () {
                () if secret.deleted || head.deleted => VersionState::Deleted,
                () if secret.active == Some(number) => VersionState::Active,
                () => VersionState::Available,
            };
            items.push(VersionItem { version: number, state, created: head.created });
        }
        if u64::try_from(items.len()) != Ok(secret.newest) {
            return Err(torn().into());
        }
        Ok(Released::head(Answer::Versions { items }))
    }

    /// The names at and below a prefix that the caller may list, in order of their folded form, a
    /// page at a time; `more` says that the page is not the last. Looks at no more than
    /// [`LIST_EXAMINED`] names; `from` is the sealed place where such a search goes on.
    pub(super) async fn list(
        &self,
        act: &Act<'_>,
        prefix: &SecretPrefix,
        after: Option<&SecretName>,
        from: Option<&str>,
    ) -> Result<Released, Failure> {
        if *act.target != Target::Itself {
            return Err(changed());
        }
        let mut page = Page::default();
        let after = match from {
            Some(text) => Some(self.open_place(prefix, text)?),
            None => after.map(name_key),
        };
        let mut examined = 0usize;
        if let Ok(name) = SecretName::parse(prefix.as_str()) {
            let is_later = after.as_ref().is_none_or(|after| name_key(&name) > *after);
            if is_later
                && (act.may_list)(&name)
                && let Some(item) = self.item(&name).await?
            {
                page.add(item);
            }
        }
        let below = format!("{}/", prefix.as_str().to_ascii_lowercase()).into_bytes();
        let mut cursor = after;
        loop {
            let rows = self.store.scan(Table::Names, &below, cursor.as_deref(), SCAN).await;
            let rows = rows.map_err(VaultError::Store)?;
            let is_last = rows.len() < SCAN;
            for (key, row) in rows {
                let name = self.listed_name(&key, &row.value)?;
                if prefix.covers(&name) && (act.may_list)(&name) {
                    if page.is_full() {
                        return Ok(page.answer(true));
                    }
                    if let Some(item) = self.item(&name).await? {
                        page.add(item);
                    }
                }
                cursor = Some(key);
            }
            if is_last {
                return Ok(page.answer(false));
            }
            examined = examined.saturating_add(SCAN);
            if let Some(place) = cursor.as_ref().filter(|_| examined >= LIST_EXAMINED) {
                return Ok(page.answer_from(self.seal_place(prefix, place)));
            }
            tokio::task::yield_now().await; // a long tree must not starve other requests
        }
    }

    /// A place within a prefix, for a client to bring back. All are equally long and none can be
    /// read: the name there may be one that the caller may not list.
    fn seal_place(&self, prefix: &SecretPrefix, key: &[u8]) -> String {
        let mut plain = key.to_vec();
        plain.resize(NAME_MAX.max(key.len()), 0); // no name holds a zero
        let sealed = self.root.key_for(PLACE).seal(PLACE, prefix.as_str().as_bytes(), &plain);
        BASE64.encode(sealed)
    }

    pub(super) fn open_place(&self, prefix: &SecretPrefix, text: &str) -> Result<Vec<u8>, Failure> {
        let wrong = || Failure::invalid("`from` is no place in this list; begin it anew");
        let sealed = BASE64.decode(text).map_err(|_| wrong())?;
        let aad = prefix.as_str().as_bytes();
        let plain = self.root.key_for(PLACE).open(PLACE, aad, &sealed).map_err(|_| wrong())?;
        let length = plain.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Ok(plain.get(..length).unwrap_or_default().to_vec())
    }

    /// The name that a row gives, not yet believed: [`Vault::item`] checks before it is shown. A
    /// row that can't be read stands for the folded name, so that who may not list it does not hear
    /// of it, and who may is told that it is damaged.
    fn listed_name(&self, key: &[u8], bytes: &[u8]) -> Result<SecretName, VaultError> {
        let row = self.rows.open::<NameRow>(Table::Names, key, bytes, Trust::Unchecked);
        match row {
            Ok(row) if name_key(&row.name) == key => Ok(row.name),
            _ => {
                let folded = String::from_utf8_lossy(key).into_owned();
                SecretName::parse(&folded).map_err(|_| VaultError::Torn("a name".to_owned()))
            }
        }
    }

    async fn item(&self, name: &SecretName) -> Result<Option<SecretItem>, VaultError> {
        let secret = self.secret(name, Trust::Checked).await?.secret;
        Ok(secret.map(|found| found.row).map(|row| SecretItem {
            active: row.active.filter(|_| !row.deleted),
            name: row.name,
            labels: row.labels,
            deleted: row.deleted,
        }))
    }
}

/// One page of names, bounded in number and in bytes.
#[derive(Default)]
struct Page {
    items: Vec<SecretItem>,
    bytes: usize,
}

impl Page {
    fn is_full(&self) -> bool {
        self.items.len() >= LIST_PAGE || self.bytes >= LIST_BYTES
    }

    fn add(&mut self, item: SecretItem) {
        // What the item takes in JSON, from above: quotes and separators of its fields included.
        let labels: usize =
            item.labels.iter().map(|(key, value)| key.len() + 2 * value.len() + 8).sum();
        self.bytes += item.name.as_str().len() + labels + 80;
        self.items.push(item);
    }

    fn answer(self, more: bool) -> Released {
        Released::head(Answer::Names { items: self.items, more, next: None })
    }

    fn answer_from(self, next: String) -> Released {
        Released::head(Answer::Names { items: self.items, more: true, next: Some(next) })
    }
}
