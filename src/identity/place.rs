//! What a SPIFFE ID of our own domain is for, by its path alone. Read once, when the chain is
//! verified, so that recognising compares no text.

use crate::model::{DeviceId, SpiffeId};

/// Where an ID stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// `/doorward/agent/<device id>`
    Agent(DeviceId),
    /// In another trust domain: whatever its path, it means nothing here.
    Foreign,
    /// `/doorward/operator/<name>`
    Operator,
    /// Any other path under `/doorward`: nobody asks under such an ID.
    Reserved,
    /// Everything else.
    Workload,
}

impl Place {
    /// The place of an ID of our own trust domain.
    pub(super) fn of(id: &SpiffeId) -> Self {
        if !id.is_reserved() {
            return Self::Workload;
        }
        let mut segments = id.path().split('/').skip(2);
        match (segments.next(), segments.next(), segments.next()) {
            (Some("agent"), Some(device), None) => {
                DeviceId::parse(device).map_or(Self::Reserved, Self::Agent)
            }
            (Some("operator"), Some(_), None) => Self::Operator,
            _ => Self::Reserved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_have_a_meaning() {
        let device = DeviceId::of_key(b"device");
        let place = |path: &str| {
            Place::of(&SpiffeId::parse(&format!("spiffe://corp.example{path}")).unwrap())
        };
        assert_eq!(place(&format!("/doorward/agent/{device}")), Place::Agent(device));
        assert_eq!(place("/doorward/operator/ana"), Place::Operator);
        assert_eq!(place("/ns/pay"), Place::Workload);
        assert_eq!(place("/doorwards/operator/ana"), Place::Workload);
        for reserved in [
            "/doorward",
            "/doorward/agent",
            "/doorward/agent/laptop",
            "/doorward/operator",
            "/doorward/operator/ana/x",
            "/doorward/broker",
            "/doorward/applicant",
            "/doorward/task/retention",
            "/doorward/Agent/x",
        ] {
            assert_eq!(place(reserved), Place::Reserved, "{reserved}");
        }
        let upper = device.to_string().to_uppercase();
        if upper != device.to_string() {
            assert_eq!(place(&format!("/doorward/agent/{upper}")), Place::Reserved);
        }
        assert_eq!(place(&format!("/doorward/agent/{device}/x")), Place::Reserved);
    }
}
