// Package mirror is a directory of files from which a validation authority answers without a way to the CA: the CA writes it, any
// tool carries it (rsync, an object store, NFS), `est-server va --mirror` reads it. Neither side connects to the other.
//
//	ca/NAME.der               the certificate of a CA
//	crl/NAME.crl              its newest CRL; crl/NAME/N.crl if it has several
//	status/NAME/head.json     what is below, when it was published, and a signature over both
//	status/NAME/G.snapshot    the states of all certificates when generation G was begun
//	status/NAME/G-N.segment   what changed since, N = 1, 2, ...
//
// A snapshot is a row of records in the order of their serial numbers. A segment is the SHA-256 of the file before it (segment N-1, or for N = 1 the snapshot)
// and then records. A record has 35 octets: serial number (17), state (1: 0 withdrawn, 1 good, 2 revoked), CRLReason (1), time of
// revocation (8) and end of validity (8), both Unix seconds, big endian. The head names the SHA-256 of the snapshot and of the newest segment: so the
// signature covers every octet, and whatever is cut off, left out or exchanged on the way shows.
//
// Each file is replaced or made as a whole, the head last. A reader that sees a head before what it names goes on with what it has and looks again. The
// files of the generation before stay until the next one, for transports that are slow.
//
// The head is signed by the CA's OCSP signer, over "natal status head 1\n" and the payload's octets.
//
//	mirror.go   this page, records, heads
//	table.go    the states in memory: a snapshot and what changed since
//	publish.go  Publisher: the CA's side
//	read.go     Reader: the validation authority's side
package mirror

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/natal-pki/natal/ca"
	"github.com/natal-pki/natal/ca/ocsp"
)

const (
	format     = 1
	signedText = "natal status head 1\n"
	headFile   = "head.json"

	serialOctets = 17
	recordOctets = serialOctets + 1 + 1 + 8 + 8

	good    = 1
	revoked = 2
)

// head is the payload of head.json.
type head struct {
	Format       int             `json:"format"`
	CA           string          `json:"ca"`
	Sequence     int64           `json:"sequence"` // of heads, for ever ascending
	PublishedAt  time.Time       `json:"published_at"`
	Cursor       ca.StatusCursor `json:"cursor"` // what is in it: all changes up to here
	Generation   int64           `json:"generation"`
	Snapshot     string          `json:"snapshot_sha256"`
	Records      int             `json:"snapshot_records"`
	Segments     int             `json:"segments"`
	NewestDigest string          `json:"newest_sha256"` // of the last segment, or of the snapshot
}

// signedHead is head.json.
type signedHead struct {
	Payload     []byte `json:"payload"`     // a head, JSON
	Signature   []byte `json:"signature"`   // over signedText and the payload
	Certificate []byte `json:"certificate"` // of the OCSP signer, DER
}

// openHead reads and verifies a head: signed for OCSP by a signer of this very CA that was valid when it signed. It returns that signer too.
func openHead(content []byte, name string, issuer *x509.Certificate) (h head, signer *x509.Certificate, err error) {
	var signed signedHead
	if err := json.Unmarshal(content, &signed); err != nil {
		return h, nil, err
	}
	certificate, err := x509.ParseCertificate(signed.Certificate)
	if err != nil {
		return h, nil, err
	}
	h, err = signed.verify(name, certificate, issuer)
	return h, certificate, err
}

func (signed *signedHead) verify(name string, certificate, issuer *x509.Certificate) (h head, err error) {
	if !slices.Contains(certificate.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return h, errors.New("its signer is not one for OCSP")
	}
	if err := certificate.CheckSignatureFrom(issuer); err != nil {
		return h, fmt.Errorf("its signer is not from the CA: %w", err)
	}
	algorithm, err := ocsp.SignatureAlgorithm(certificate.PublicKey)
	if err != nil {
		return h, err
	}
	if err := certificate.CheckSignature(algorithm, append([]byte(signedText), signed.Payload...), signed.Signature); err != nil {
		return h, err
	}
	if err := json.Unmarshal(signed.Payload, &h); err != nil {
		return h, err
	}
	switch {
	case h.Format != format:
		return h, fmt.Errorf("format %d is not %d", h.Format, format)
	case h.CA != name:
		return h, fmt.Errorf("it is of CA %q", h.CA)
	case h.PublishedAt.Before(certificate.NotBefore) || h.PublishedAt.After(certificate.NotAfter):
		return h, errors.New("its signer was not valid then")
	}
	return h, nil
}

func (h *head) snapshotFile() string { return fmt.Sprintf("%d.snapshot", h.Generation) }

func (h *head) segmentFile(n int) string { return fmt.Sprintf("%d-%d.segment", h.Generation, n) }

// readSegments returns the records of the segments after the first done ones, whose newest has the digest before.
func (h *head) readSegments(dir string, done int, before string) ([]byte, error) {
	var records []byte
	for n := done + 1; n <= h.Segments; n++ {
		content, err := readFile(filepath.Join(dir, h.segmentFile(n)), maxSegment)
		if err != nil {
			return nil, err
		}
		if len(content) < sha256.Size || (len(content)-sha256.Size)%recordOctets != 0 || hex.EncodeToString(content[:sha256.Size]) != before {
			return nil, fmt.Errorf("%s does not continue the file before it", h.segmentFile(n))
		}
		records = append(records, content[sha256.Size:]...)
		before = sum(content)
	}
	if before != h.NewestDigest {
		return nil, fmt.Errorf("%s is not the one that the head names", h.segmentFile(h.Segments))
	}
	return records, nil
}

// load reads all that a head names.
func (h *head) load(dir string) (*table, error) {
	snapshot, err := readFile(filepath.Join(dir, h.snapshotFile()), int64(h.Records)*recordOctets)
	if err != nil {
		return nil, err
	}
	if sum(snapshot) != h.Snapshot || len(snapshot) != h.Records*recordOctets {
		return nil, fmt.Errorf("%s is not the one that the head names", h.snapshotFile())
	}
	records, err := h.readSegments(dir, 0, h.Snapshot)
	if err != nil {
		return nil, err
	}
	t := newTable(snapshot)
	t.apply(records)
	return t, nil
}

const (
	maxHead    = 64 << 10
	maxSegment = 16 << 20
)

// readFile reads a file that somebody else carried here: nothing but a file, and no more of it than there can be.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path) // to open a pipe could last for ever
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		err = fmt.Errorf("%s is longer than %d octets", path, limit)
	}
	return content, err
}

func sum(content []byte) string {
	digest := sha256.Sum256(content)
	return hex.EncodeToString(digest[:])
}

// serialKey is a serial number as records hold it; ok is false for one that no record can hold.
func serialKey(serial *big.Int) (key [serialOctets]byte, ok bool) {
	if serial.Sign() <= 0 || serial.BitLen() > 8*serialOctets {
		return key, false
	}
	serial.FillBytes(key[:])
	return key, true
}

// encode appends the record of a status; one with a serial number of another form is left out, and then unknown to readers.
func encode(records []byte, s ca.RecordedStatus) []byte {
	serial, err := hex.DecodeString(s.Serial)
	if err != nil || len(serial) != serialOctets {
		return records
	}
	state := map[ocsp.State]byte{ocsp.Good: good, ocsp.Revoked: revoked}[s.Status.State]
	records = append(append(records, serial...), state, byte(s.Status.Reason))
	records = binary.BigEndian.AppendUint64(records, uint64(s.Status.RevokedAt))
	return binary.BigEndian.AppendUint64(records, uint64(s.NotAfter))
}

// decode is what a record says at a time: what was good and has ended is unknown, as it is from the CA itself.
func decode(record []byte, now time.Time) ocsp.Status {
	rest := record[serialOctets:]
	revokedAt, notAfter := int64(binary.BigEndian.Uint64(rest[2:])), int64(binary.BigEndian.Uint64(rest[10:]))
	switch {
	case rest[0] == revoked:
		return ocsp.Status{State: ocsp.Revoked, RevokedAt: revokedAt, Reason: int(rest[1])}
	case rest[0] == good && now.Unix() <= notAfter:
		return ocsp.Status{State: ocsp.Good, NotAfter: notAfter}
	}
	return ocsp.Status{}
}
