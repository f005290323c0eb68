// Checkpoints: heads signed with a key of their own, to be kept where nobody who can write to the database can write.

package audit

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"
)

// Checkpoint is a signed head: one line of checkpoints.jsonl.
type Checkpoint struct {
	Epoch     int64  `json:"epoch"`
	Seq       int64  `json:"seq"`
	Hash      string `json:"hash"`
	At        string `json:"at"`        // when it was signed, RFC 3339 in UTC, whole seconds
	Signature []byte `json:"signature"` // ECDSA with SHA-256 over Message, ASN.1, base64 in JSON
}

// Message is what is signed, to the byte: five lines, each ended by a line feed.
func (c Checkpoint) Message() []byte {
	return fmt.Appendf(nil, "natal audit checkpoint v1\nepoch %d\nseq %d\nhash %s\nat %s\n", c.Epoch, c.Seq, c.Hash, c.At)
}

// Head is the head that was signed.
func (c Checkpoint) Head() Head { return Head{Epoch: c.Epoch, Seq: c.Seq, Hash: c.Hash} }

// SignedAt is when it was signed; the zero time when that cannot be read.
func (c Checkpoint) SignedAt() time.Time {
	at, err := time.Parse(time.RFC3339, c.At)
	if err != nil {
		return time.Time{}
	}
	return at
}

// Sign makes a checkpoint of head with an EC key.
func Sign(head Head, at time.Time, key crypto.Signer) (Checkpoint, error) {
	c := Checkpoint{Epoch: head.Epoch, Seq: head.Seq, Hash: head.Hash, At: at.UTC().Format(time.RFC3339)}
	sum := sha256.Sum256(c.Message())
	var err error
	if c.Signature, err = key.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
		return Checkpoint{}, fmt.Errorf("sign audit checkpoint: %w", err)
	}
	return c, nil
}

// Line is the checkpoint as a line of checkpoints.jsonl, with its line feed.
func (c Checkpoint) Line() ([]byte, error) {
	line, err := json.Marshal(c)
	return append(line, '\n'), err
}

// ReadCheckpoints reads the lines of checkpoints.jsonl, oldest first.
func ReadCheckpoints(content []byte) ([]Checkpoint, error) {
	var list []Checkpoint
	lines := bufio.NewScanner(bytes.NewReader(content))
	for n := 1; lines.Scan(); n++ {
		var c Checkpoint
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil || c.Seq < 1 || c.Hash == "" {
			return nil, fmt.Errorf("line %d is not a checkpoint", n)
		}
		list = append(list, c)
	}
	return list, lines.Err()
}

// VerifyCheckpoints checks the signature of every checkpoint, and that none is older than the one before it. It returns the newest.
func VerifyCheckpoints(list []Checkpoint, key crypto.PublicKey) (Checkpoint, error) {
	public, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return Checkpoint{}, fmt.Errorf("%T is not the EC key that checkpoints are signed with", key)
	}
	if len(list) == 0 {
		return Checkpoint{}, fmt.Errorf("there is no checkpoint")
	}
	for n, c := range list {
		sum := sha256.Sum256(c.Message())
		switch {
		case !ecdsa.VerifyASN1(public, sum[:], c.Signature):
			return Checkpoint{}, broken("checkpoint %d (entry %d): the signature is not one of this key", n+1, c.Seq)
		case n > 0 && (c.Epoch < list[n-1].Epoch || c.Seq < list[n-1].Seq):
			return Checkpoint{}, broken("checkpoint %d (entry %d) stands after one of entry %d", n+1, c.Seq, list[n-1].Seq)
		}
	}
	return list[len(list)-1], nil
}
