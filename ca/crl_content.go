// The content of published CRLs: made here, or read from the database when another server made it, and kept in memory for whoever asks.

package ca

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// partBytes is about how much of a large CRL is one row of the database; up to inlineBytes it is one row as a whole.
const (
	partBytes   = 256 << 10
	inlineBytes = 512 << 10
)

// part is a run of a CRL's entries that is stored as one row, under the number of the CRL in which it was new.
type part struct {
	number int64
	pieces [][]byte
	size   int
}

// content is a CRL in memory.
type content struct {
	row   crlRow // without der and tail
	head  []byte
	parts []part
	tail  []byte
}

func (c *content) pieces() [][]byte {
	list := [][]byte{c.head}
	for _, p := range c.parts {
		list = append(list, p.pieces...)
	}
	return append(list, c.tail)
}

func (c *content) der() []byte {
	der := make([]byte, 0, c.row.Size)
	for _, p := range c.pieces() {
		der = append(der, p...)
	}
	return der
}

// split cuts entries into parts: a power of two of them, so that parts of one CRL and the next have the same boundaries. few is how many
// the CRL before had; a CRL that grows or shrinks a little keeps that.
func split(buckets [][]byte, size, before int) []part {
	n := 1
	for n < bucketCount && size/n > partBytes {
		n *= 2
	}
	if before > 1 && (before == 2*n || 2*before == n) {
		n = before
	}
	parts := make([]part, n)
	each := len(buckets) / n
	for i := range parts {
		p := &parts[i]
		p.pieces = buckets[i*each : (i+1)*each]
		for _, b := range p.pieces {
			p.size += len(b)
		}
	}
	return parts
}

// PublishedCRL is a CRL that can be read as often and from as many sides as one likes.
type PublishedCRL struct {
	CRL
	content *content
}

// Reader returns the DER from its beginning, without a copy of it.
func (p *PublishedCRL) Reader() io.ReadSeeker {
	r := &pieceReader{pieces: p.content.pieces()}
	for _, piece := range r.pieces {
		r.starts = append(r.starts, r.size)
		r.size += int64(len(piece))
	}
	return r
}

type pieceReader struct {
	pieces [][]byte
	starts []int64
	size   int64
	at     int64
}

func (r *pieceReader) Read(p []byte) (n int, err error) {
	if r.at >= r.size {
		return 0, io.EOF
	}
	i := sort.Search(len(r.starts), func(i int) bool { return r.starts[i] > r.at }) - 1
	n = copy(p, r.pieces[i][r.at-r.starts[i]:])
	r.at += int64(n)
	return n, nil
}

func (r *pieceReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	r.at = offset
	return offset, nil
}

// contents are the newest CRLs that were made or asked for here.
type contents struct {
	mu    sync.Mutex
	known map[crlKey]*content
	load  map[crlKey]*sync.Mutex // one reads, the others wait for him
}

type crlKey struct {
	authority string
	shard     int64
}

func (c *contents) get(key crlKey) *content {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[key]
}

func (c *contents) put(made *content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := crlKey{made.row.Authority, made.row.Shard}
	if old := c.known[key]; old == nil || old.row.Number < made.row.Number {
		c.known[key] = made
	}
}

func (c *contents) lock(key crlKey) (unlock func()) {
	c.mu.Lock()
	m := c.load[key]
	if m == nil {
		m = &sync.Mutex{}
		c.load[key] = m
	}
	c.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// Published returns the newest CRL of a shard (0 for a CA with one), as it stands in the database now.
func (a *Authorities) Published(ctx context.Context, name string, shard int) (*PublishedCRL, error) {
	for {
		r, err := a.newestCRL(ctx, name, shard)
		if err != nil {
			return nil, err
		}
		c, err := a.content(ctx, r)
		if isKind(err, NotFound) { // meanwhile it was replaced, and is gone
			if again, err := a.newestCRL(ctx, name, shard); err != nil || again.Number == r.Number {
				return nil, unavailable("read CRL", fmt.Errorf("CRL %d of %s is not whole", r.Number, name))
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		return &PublishedCRL{CRL: c.row.crl(), content: c}, nil
	}
}

// PublishedBySHA256 returns a CRL by the hash of its bytes; the newest ones are kept.
func (a *Authorities) PublishedBySHA256(ctx context.Context, sum string) (*PublishedCRL, error) {
	var r crlRow
	err := a.db.Get(ctx, &r, "SELECT "+crlSummary+" FROM crls WHERE sha256 = ?", sum)
	if isNoRows(err) {
		return nil, refuse(NotFound, "unknown_crl", "there is no CRL of that hash")
	}
	if err != nil {
		return nil, unavailable("read CRL", err)
	}
	c, err := a.content(ctx, r)
	if err != nil {
		return nil, err
	}
	return &PublishedCRL{CRL: c.row.crl(), content: c}, nil
}

// content returns a CRL's bytes, from memory if they are there.
func (a *Authorities) content(ctx context.Context, r crlRow) (*content, error) {
	key := crlKey{r.Authority, r.Shard}
	if c := a.contents.get(key); c != nil && c.row.Number == r.Number && c.row.SHA256 == r.SHA256 {
		return c, nil
	}
	defer a.contents.lock(key)()
	known := a.contents.get(key)
	if known != nil && known.row.Number == r.Number && known.row.SHA256 == r.SHA256 {
		return known, nil
	}
	c, err := a.readContent(ctx, r, known)
	if err != nil {
		return nil, err
	}
	if digestOf(c.pieces()...) != r.SHA256 {
		return nil, unavailable("read CRL", fmt.Errorf("CRL %d of %s in the database is damaged", r.Number, r.Authority))
	}
	a.contents.put(c)
	return c, nil
}

// readContent reads a CRL from the database; parts that known has too are taken from there.
func (a *Authorities) readContent(ctx context.Context, r crlRow, known *content) (*content, error) {
	var ends struct {
		DER  []byte `db:"der"`
		Tail []byte `db:"tail"`
	}
	missing := refuse(NotFound, "unknown_crl", "CRL %d of %q is not kept", r.Number, r.Authority)
	err := a.db.Get(ctx, &ends, "SELECT der, tail FROM crls WHERE authority = ? AND number = ?", r.Authority, r.Number)
	if isNoRows(err) {
		return nil, missing
	}
	if err != nil {
		return nil, unavailable("read CRL", err)
	}
	c := &content{row: r, head: ends.DER, tail: ends.Tail}
	numbers, err := partNumbers(r.Parts)
	if err != nil {
		return nil, unavailable("read CRL", err)
	}
	for slot, number := range numbers {
		if known != nil && len(known.parts) == len(numbers) && known.parts[slot].number == number {
			c.parts = append(c.parts, known.parts[slot])
			continue
		}
		var der []byte
		err := a.db.Get(ctx, &der, "SELECT der FROM crl_parts WHERE authority = ? AND shard = ? AND slot = ? AND number = ?", r.Authority, r.Shard, slot, number)
		if isNoRows(err) {
			return nil, missing
		}
		if err != nil {
			return nil, unavailable("read part of a CRL", err)
		}
		c.parts = append(c.parts, part{number: number, pieces: [][]byte{der}, size: len(der)})
	}
	return c, nil
}

// manifest is how a CRL's row names its parts.
func manifest(parts []part) string {
	numbers := make([]string, len(parts))
	for i, p := range parts {
		numbers[i] = strconv.FormatInt(p.number, 10)
	}
	return strings.Join(numbers, ",")
}

func partNumbers(manifest string) (numbers []int64, err error) {
	if manifest == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(manifest, ",") {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("parts of a CRL: %w", err)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}
