//! The list of devices, and how a device or a person ends.
//!
//! A device ends for good: its epoch rises and it is revoked, which kills its own certificate and
//! every one that was issued through it. Its row stays, so that its key never comes back.

use super::mirror::{Mirror, Step};
use super::records::{DeviceRecord, TokenKey, TokenRecord};
use super::room::Authority;
use crate::model::{
    Answer, DeviceClass, DeviceId, DeviceSummary, Failure, Moment, Released, check_segment,
    fit_page, next_items, rfc3339,
};

impl Authority {
    /// All devices, in the order of their ids: the page after `after`. Postures are filled in by
    /// the line.
    pub(super) fn device_list(&self, after: Option<&DeviceId>) -> Released {
        let mirror = self.mirror();
        let records = next_items(mirror.devices(), after, |(id, _)| **id);
        let mut items = records.into_iter().map(|(id, record)| self.summary(*id, record)).collect();
        let more = fit_page(&mut items);
        Released::head(Answer::Devices { items, more })
    }

    /// One device.
    pub(super) fn device_show(
        &self,
        class: &DeviceClass,
        id: &DeviceId,
    ) -> Result<Released, Failure> {
        let mirror = self.mirror();
        let record = known(&mirror, class, id)?;
        Ok(Released::head(Answer::Devices { items: vec![self.summary(*id, record)], more: false }))
    }

    fn summary(&self, id: DeviceId, record: &DeviceRecord) -> DeviceSummary {
        DeviceSummary { holds: self.confirmed.of(&id), ..summary(id, record) }
    }

    /// Ends a device. With `release`, what it was enrolled by may enrol another one from now on.
    pub(super) async fn device_revoke(
        &self,
        class: &DeviceClass,
        id: &DeviceId,
        release: bool,
        under: Option<u64>,
        now: Moment,
    ) -> Result<Released, Failure> {
        let changed = self.change(under, |mirror| {
            let record = known(mirror, class, id)?;
            let mut steps: Vec<_> = ending(*id, record).into_iter().collect();
            if let (true, Some(by)) = (release, &record.by)
                && mirror.bound().holder(&by.bound_to(), now) == Some(*id)
            {
                steps.push(Step::Bound(by.bound_to(), None));
            }
            // No other agent has anything to do with it.
            Ok((steps, Vec::new()))
        });
        self.revoked_done(changed.await?, now)
    }

    /// Ends an operator: every login of that name, and every token that would make one.
    pub(super) async fn operator_remove(
        &self,
        name: &str,
        under: Option<u64>,
    ) -> Result<Released, Failure> {
        check_segment(1, name).map_err(|error| Failure::invalid(format!("name: {error}")))?;
        self.change_done(under, |mirror| {
            let logins = mirror.devices().filter(|(_, record)| is(&record.operator, name));
            let logins: Vec<_> = logins.collect();
            let tokens: Vec<_> = mirror.tokens().filter(|(_, token)| open(token, name)).collect();
            if logins.is_empty() && tokens.is_empty() {
                return Err(Failure::absent(format!("there is no operator {name}")));
            }
            let ends = logins.into_iter().filter_map(|(id, record)| ending(*id, record));
            let voids = tokens.into_iter().map(|(key, _): (&TokenKey, _)| Step::Token(*key, None));
            Ok(ends.chain(voids).collect())
        })
        .await
    }
}

/// The step that ends a device; none when it has ended.
pub(super) fn ending(id: DeviceId, record: &DeviceRecord) -> Option<Step> {
    if record.revoked {
        return None;
    }
    let epoch = record.epoch.saturating_add(1);
    Some(Step::Device(id, DeviceRecord { epoch, revoked: true, ..record.clone() }))
}

fn known<'a>(
    mirror: &'a Mirror,
    class: &DeviceClass,
    id: &DeviceId,
) -> Result<&'a DeviceRecord, Failure> {
    let record = mirror.device(id).filter(|record| record.class == *class);
    record.ok_or_else(|| Failure::absent(format!("there is no device {class}/{id}")))
}

fn is(operator: &Option<String>, name: &str) -> bool {
    operator.as_deref() == Some(name)
}

fn open(token: &TokenRecord, name: &str) -> bool {
    token.spent.is_none() && is(&token.operator, name)
}

fn summary(id: DeviceId, record: &DeviceRecord) -> DeviceSummary {
    let enrolled = time::OffsetDateTime::from_unix_timestamp(record.enrolled);
    DeviceSummary {
        id,
        class: record.class.clone(),
        name: record.name.clone(),
        revoked: record.revoked,
        by: record.by.clone(),
        enrolled: enrolled.map(rfc3339).unwrap_or_default(),
        posture: String::new(),
        holds: None,
        evidence_age_ms: None,
        facts: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake_store::{Room, copy, fresh_key, id};
    use super::*;
    use crate::model::{Code, SecretValue};

    async fn login(room: &Room, token: &SecretValue) -> Result<DeviceId, crate::model::Failure> {
        let key = fresh_key();
        let enrolled = room.authority.redeem(&key, "desk", token, None, room.now()).await;
        enrolled.map(|(device, _)| device)
    }

    fn items(released: Released) -> Vec<DeviceSummary> {
        match released.answer {
            Answer::Devices { items, .. } => items,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn devices_are_listed_and_shown_under_their_class_only() {
        let room = Room::new().await;
        let (one, _) = room.device("server").await;
        let (two, _) = room.device("laptop").await;
        let ids: Vec<_> =
            items(room.authority.device_list(None)).iter().map(|item| item.id).collect();
        assert_eq!(ids, if one < two { [one, two] } else { [two, one] });
        let (server, laptop) =
            (DeviceClass::parse("server").unwrap(), DeviceClass::parse("laptop").unwrap());
        let shown = items(room.authority.device_show(&server, &one).unwrap());
        assert_eq!((shown[0].id, shown[0].name.as_str()), (one, "host"));
        assert_eq!(shown[0].enrolled, "2026-11-23T12:00:00Z");
        let failure = room.authority.device_show(&laptop, &one).unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
        let failure =
            room.authority.device_revoke(&laptop, &one, false, None, room.now()).await.unwrap_err();
        assert_eq!(failure.code, Code::NotFound, "a right on laptops ends no server");
        assert!(!room.identity.view().devices[&one].revoked);
    }

    #[tokio::test]
    async fn a_revoked_device_is_dead_in_the_view_before_the_answer() {
        let room = Room::new().await;
        let (device, key) = room.device("server").await;
        let class = DeviceClass::parse("server").unwrap();
        let changes = room.identity.changes();
        let count = *changes.borrow();
        let done = room
            .authority
            .device_revoke(&class, &device, false, Some(9), room.now())
            .await
            .unwrap();
        assert_eq!(*changes.borrow(), count + 1, "connections are looked at again");
        let status = room.identity.view().devices[&device].clone();
        assert_eq!((status.epoch, status.revoked), (2, true));
        let Answer::Revoked { revision, .. } = done.answer else { panic!("{:?}", done.answer) };
        let again = room
            .authority
            .device_revoke(&class, &device, false, Some(10), room.now())
            .await
            .unwrap();
        let twice = Answer::Revoked { revision, pending: Vec::new(), count: 0 };
        assert_eq!(again.answer, twice, "revoking twice does nothing");

        let made = room.authority.token_create(&class, 60, None, room.now()).await.unwrap();
        let back = room.authority.redeem(&key, "host", &made.body, None, room.now()).await;
        assert_eq!(back.unwrap_err().code, Code::Conflict, "its key never comes back");
        let restarted = room.again().await;
        assert!(restarted.identity.view().devices[&device].revoked);
    }

    #[tokio::test]
    async fn a_removed_operator_loses_every_login_and_every_open_token() {
        let room = Room::new().await;
        let token = async |name| room.authority.operator_token(name).await.unwrap();
        let desk = login(&room, &token("alice").await).await.unwrap();
        let laptop = login(&room, &token("alice").await).await.unwrap();
        let bob = login(&room, &token("bob").await).await.unwrap();
        let open = token("alice").await;
        let control = token("bob").await;

        let failure = room.authority.operator_remove("carol", None).await.unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
        room.authority
            .revoke(&id("/doorward/operator/alice"), false, Some(4), room.now())
            .await
            .unwrap();
        let view = room.identity.view();
        assert!(view.devices[&desk].revoked && view.devices[&laptop].revoked);
        assert!(!view.devices[&bob].revoked);
        assert_eq!(login(&room, &open).await.unwrap_err().code, Code::Denied);
        assert!(login(&room, &control).await.is_ok());

        let back = token("alice").await;
        assert!(login(&room, &copy(&back)).await.is_ok(), "with a fresh key and token");
    }

    #[tokio::test]
    async fn a_revocation_that_the_store_refuses_is_not_answered_with_done() {
        let room = Room::new().await;
        let (device, _) = room.device("server").await;
        let class = DeviceClass::parse("server").unwrap();
        room.store.fails_next.store(true, std::sync::atomic::Ordering::SeqCst);
        let failure = room
            .authority
            .device_revoke(&class, &device, false, None, room.now())
            .await
            .unwrap_err();
        assert_eq!(failure.code, Code::Unavailable);
        assert!(!room.identity.view().devices[&device].revoked);
        room.authority.device_revoke(&class, &device, false, None, room.now()).await.unwrap();
        assert!(room.identity.view().devices[&device].revoked);
    }

    #[tokio::test]
    async fn a_revocation_by_another_broker_is_not_overwritten() {
        let one = Room::new().await;
        let (device, _) = one.device("server").await;
        let two = one.again().await;
        let class = DeviceClass::parse("server").unwrap();
        one.authority.device_revoke(&class, &device, false, Some(1), one.now()).await.unwrap();
        // The second broker has not heard of it; its own change of that row meets the newer one.
        two.authority.device_revoke(&class, &device, false, Some(2), two.now()).await.unwrap();
        let status = two.identity.view().devices[&device].clone();
        assert_eq!((status.epoch, status.revoked), (2, true));
    }
}
