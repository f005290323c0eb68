-- All times are Unix milliseconds, UTC; 0 means "not yet". Hashes and serial numbers are lower-case hex.
-- +goose Up
CREATE TABLE counters (
    name  TEXT   NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('changes', 0), ('configuration', 1), ('epoch', 1), ('revocations', 0);

CREATE TABLE audit (
    seq      BIGINT NOT NULL PRIMARY KEY,
    at       BIGINT NOT NULL,
    actor    TEXT   NOT NULL,
    action   TEXT   NOT NULL,
    object   TEXT   NOT NULL,
    detail   TEXT   NOT NULL,
    previous TEXT   NOT NULL,
    hash     TEXT   NOT NULL
);
CREATE TABLE audit_head (
    id   BIGINT NOT NULL PRIMARY KEY,
    seq  BIGINT NOT NULL,
    at   BIGINT NOT NULL,
    hash TEXT   NOT NULL
);
INSERT INTO audit_head (id, seq, at, hash) VALUES (1, 0, 0, '');

CREATE TABLE profiles (
    name       TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    hash       TEXT   NOT NULL,
    yaml       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);

CREATE TABLE authorities (
    name         TEXT   NOT NULL PRIMARY KEY,
    subject      TEXT   NOT NULL,
    parent       TEXT   NOT NULL,
    state        TEXT   NOT NULL,
    key_spec     TEXT   NOT NULL,
    key_uri      TEXT   NOT NULL,
    profile_use  TEXT   NOT NULL,
    public_url   TEXT   NOT NULL,
    csr          BYTEA,
    certificate  BYTEA,
    chain        BYTEA,
    crl_validity BIGINT NOT NULL,
    crl_interval BIGINT NOT NULL,
    crl_number   BIGINT NOT NULL,
    shards       BIGINT NOT NULL,
    replaces     TEXT   NOT NULL,
    crosses      BYTEA,
    created_at   BIGINT NOT NULL
);

-- A CRL is complete up to entry seq of the log of revocations. A large one is kept in parts, so that the next one writes only what differs: it is
-- der, the parts of the numbers named in parts ("7,7,9", one for each slot), tail.
CREATE TABLE crls (
    authority   TEXT   NOT NULL,
    shard       BIGINT NOT NULL,
    number      BIGINT NOT NULL,
    this_update BIGINT NOT NULL,
    next_update BIGINT NOT NULL,
    issued_at   BIGINT NOT NULL,
    entries     BIGINT NOT NULL,
    seq         BIGINT NOT NULL,
    size        BIGINT NOT NULL,
    sha256      TEXT   NOT NULL,
    parts       TEXT   NOT NULL,
    tail        BYTEA,
    der         BYTEA  NOT NULL,
    PRIMARY KEY (authority, number)
);
CREATE INDEX crls_shard ON crls (authority, shard, number);
CREATE TABLE crl_parts (
    authority TEXT   NOT NULL,
    shard     BIGINT NOT NULL,
    slot      BIGINT NOT NULL,
    number    BIGINT NOT NULL,
    der       BYTEA  NOT NULL,
    PRIMARY KEY (authority, shard, slot, number)
);
CREATE INDEX crls_sha256 ON crls (sha256);

CREATE TABLE labels (
    name       TEXT   NOT NULL PRIMARY KEY,
    authority  TEXT   NOT NULL,
    profile    TEXT   NOT NULL,
    auth       TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE birth_cas (
    label       TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    subject     TEXT   NOT NULL,
    certificate BYTEA   NOT NULL,
    added_at    BIGINT NOT NULL,
    PRIMARY KEY (label, fingerprint)
);

CREATE TABLE end_entities (
    id         TEXT   COLLATE "C" NOT NULL PRIMARY KEY,
    label      TEXT   NOT NULL,
    state      TEXT   NOT NULL,
    bound_kind TEXT   NOT NULL,
    bound_to   TEXT   NOT NULL,
    sans       TEXT   NOT NULL,
    generation BIGINT NOT NULL,
    service    TEXT   NOT NULL,
    suspended_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX end_entities_label ON end_entities (label, id);
CREATE INDEX end_entities_state ON end_entities (state, id) WHERE state <> 'generated';
CREATE UNIQUE INDEX end_entities_folded ON end_entities (lower(id));

CREATE TABLE enrollment_codes (
    id         TEXT   NOT NULL PRIMARY KEY,
    device     TEXT   NOT NULL,
    label      TEXT   NOT NULL,
    hash       TEXT   NOT NULL,
    state      TEXT   NOT NULL,
    expires_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    used_at    BIGINT NOT NULL,
    issuer     TEXT   NOT NULL,
    serial     TEXT   NOT NULL
);
CREATE INDEX enrollment_codes_device ON enrollment_codes (device);

CREATE TABLE certificates (
    serial         TEXT   NOT NULL,
    issuer         TEXT   NOT NULL,
    state          TEXT   NOT NULL,
    device         TEXT   COLLATE "C" NOT NULL,
    label          TEXT   NOT NULL,
    profile        TEXT   NOT NULL,
    profile_hash   TEXT   NOT NULL,
    spki_sha256    TEXT   NOT NULL,
    requester_kind TEXT   NOT NULL,
    requester      TEXT   NOT NULL,
    claim          TEXT   NOT NULL,
    generation     BIGINT NOT NULL,
    renews         TEXT   NOT NULL,
    tbs_sha256     TEXT   NOT NULL,
    tbs            BYTEA,
    der            BYTEA,
    not_before     BIGINT NOT NULL,
    not_after      BIGINT NOT NULL,
    created_at     BIGINT NOT NULL,
    issued_at      BIGINT NOT NULL,
    renewed_at     BIGINT NOT NULL,
    first_used_at  BIGINT NOT NULL,
    superseded_at  BIGINT NOT NULL,
    revoked_at     BIGINT NOT NULL,
    reason         TEXT   NOT NULL,
    PRIMARY KEY (serial, issuer)
);
CREATE UNIQUE INDEX certificates_claim ON certificates (claim);
CREATE INDEX certificates_device ON certificates (device, serial);
CREATE INDEX certificates_renews ON certificates (renews) WHERE renews <> '';
CREATE INDEX certificates_revoked ON certificates (issuer, revoked_at) WHERE revoked_at > 0;
CREATE INDEX certificates_listed ON certificates (issuer, serial, revoked_at, reason, not_after) WHERE revoked_at > 0;
CREATE INDEX certificates_spki ON certificates (spki_sha256);
-- The next three serve listings; the first two hold what the gauges count by, so that counting reads no certificate. Nearly all keys that an
-- enrollment adds to them are at their ends: keys all over an index would cost more the more certificates there are.
CREATE INDEX certificates_state ON certificates (state, profile, serial, issuer) WHERE state <> 'issued';
CREATE INDEX certificates_expiry ON certificates (not_after, serial, issuer, profile, renewed_at) WHERE state = 'issued';
CREATE INDEX certificates_profile ON certificates (profile, not_after, serial);
CREATE INDEX certificates_canaries ON certificates (requester) WHERE requester_kind = 'canary';
CREATE INDEX certificates_intended ON certificates (created_at) WHERE state = 'intended';

-- Certificates that the suspension of a device holds: its end gives back these and no others.
CREATE TABLE suspended_certificates (
    serial TEXT NOT NULL,
    issuer TEXT NOT NULL,
    device TEXT NOT NULL,
    PRIMARY KEY (serial, issuer)
);
CREATE INDEX suspended_certificates_device ON suspended_certificates (device);

-- What was revoked, held or taken back, in the order in which it was committed: CRLs and OCSP answers follow it.
CREATE TABLE revocations (
    seq        BIGINT NOT NULL PRIMARY KEY,
    issuer     TEXT   NOT NULL,
    serial     TEXT   NOT NULL,
    reason     TEXT   NOT NULL,
    revoked_at BIGINT NOT NULL,
    not_after  BIGINT NOT NULL
);
CREATE INDEX revocations_issuer ON revocations (issuer, seq);

CREATE TABLE changes (
    seq        BIGINT NOT NULL PRIMARY KEY,
    at         BIGINT NOT NULL,
    kind       TEXT   NOT NULL,
    device     TEXT   NOT NULL,
    label      TEXT   NOT NULL,
    profile    TEXT   NOT NULL,
    service    TEXT   NOT NULL,
    issuer     TEXT   NOT NULL,
    serial     TEXT   NOT NULL,
    reason     TEXT   NOT NULL,
    superseded BIGINT NOT NULL
);

CREATE INDEX changes_trust_set ON changes (seq) WHERE kind = 'trust_set';

CREATE TABLE bridge_acks (
    bridge      TEXT   NOT NULL,
    broker      TEXT   NOT NULL,
    seq         BIGINT NOT NULL,
    verified_at BIGINT NOT NULL,
    error       TEXT   NOT NULL,
    holds       TEXT   NOT NULL,
    at          BIGINT NOT NULL,
    PRIMARY KEY (bridge, broker)
);

CREATE TABLE administrators (
    name       TEXT   NOT NULL PRIMARY KEY,
    role       TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);
