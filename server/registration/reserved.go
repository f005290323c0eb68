// Names that no request may choose for itself, whatever the profile lets it choose: those of the EST server, of other end entities, and of
// what the installation lives on (brokers, bridges). Whoever had one in his certificate could pass for them.

package registration

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/natal-pki/natal/ca/profile"
)

// Reserved returns what tells whether a name ("dns:NAME", "ip:ADDRESS", ...) is somebody else's than device's. A name that cannot be looked up is.
func (b *Book) Reserved(ctx context.Context, device string) func(name string) bool {
	return func(name string) bool {
		kind, value, _ := strings.Cut(name, ":")
		if kind != "dns" && kind != "ip" {
			return false
		}
		value = strings.ToLower(value)
		if b.serverIsCalled(ctx, value) {
			return true
		}
		var others int64
		err := b.db.Get(ctx, &others, "SELECT COUNT(*) FROM end_entities WHERE lower(id) = ? AND id <> ? AND state <> 'historical'", strings.TrimPrefix(value, "*."), device)
		if err != nil || others > 0 {
			return true
		}
		known, err := b.installationIsCalled(ctx, kind+":"+value, device)
		return err != nil || known
	}
}

// serverIsCalled tells whether the EST server has this name. Every machine is called localhost.
func (b *Book) serverIsCalled(ctx context.Context, value string) bool {
	if address, err := netip.ParseAddr(value); b.serverNames == nil || value == "localhost" || err == nil && address.IsLoopback() {
		return false
	}
	return slices.ContainsFunc(b.serverNames(ctx), func(own string) bool { return covers(own, value) || covers(value, own) })
}

// installationIsCalled looks among the names of the end entities at the labels of use management, of which there are few.
func (b *Book) installationIsCalled(ctx context.Context, name, device string) (bool, error) {
	labels, err := b.Labels(ctx)
	if err != nil {
		return false, err
	}
	kind, value, _ := strings.Cut(name, ":")
	like := value // of a name with dots, all its neighbours are looked at: one of them may be a wildcard
	if _, parent, has := strings.Cut(value, "."); has && kind == "dns" {
		like = "." + parent
	}
	for _, l := range labels {
		p, err := b.ca.Profile(ctx, l.Profile)
		if err != nil || p.Use() != profile.UseManagement {
			continue
		}
		var near []entityRow
		err = b.db.Select(ctx, &near, "SELECT "+entityColumns+" FROM end_entities WHERE label = ? AND id <> ? AND (sans LIKE ? OR lower(id) LIKE ?)", l.Name, device, "%"+like+`"%`, "%"+like)
		if err != nil {
			return true, err
		}
		for i := range near {
			e, err := near[i].entity()
			if err != nil {
				return true, err
			}
			if slices.ContainsFunc(append(e.SANs, profile.NameOf(e.ID)), func(own string) bool { return covers(own, name) || covers(name, own) }) {
				return true, nil
			}
		}
	}
	return false, nil
}

// covers tells whether a certificate for pattern, which may begin with a wildcard, serves for name: "*" is one label. Names may have their kind before them.
func covers(pattern, name string) bool {
	if strings.EqualFold(pattern, name) {
		return true
	}
	kind, parent, wildcard := strings.Cut(pattern, "*.")
	_, rest, below := strings.Cut(name, ".")
	return wildcard && below && (kind == "" || kind == "dns:") && strings.HasPrefix(name, kind) && strings.EqualFold(rest, parent)
}
