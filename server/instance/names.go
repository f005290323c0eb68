// The names of this machine, for the EST server's certificate and the addresses in certificates.

package instance

import (
	"context"
	"net"
	"os"
	"strings"
	"time"

	"github.com/natal-pki/natal/server/config"
)

// A resolver that does not answer must not hold up a start.
const lookupTimeout = 500 * time.Millisecond

const maxNames = 60

// HostName is the fully qualified name of this machine if it can be found, else its plain name, else "localhost".
func HostName(ctx context.Context) string {
	name, err := os.Hostname()
	if err != nil || config.CheckHost(name) != nil {
		return "localhost"
	}
	if strings.Contains(name, ".") {
		return name
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	if canonical, err := net.DefaultResolver.LookupCNAME(ctx, name); err == nil {
		if full := strings.TrimSuffix(canonical, "."); isFull(full, name) {
			return full
		}
	}
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return name
	}
	for _, address := range addresses {
		names, err := net.DefaultResolver.LookupAddr(ctx, address)
		if err != nil {
			continue
		}
		for _, candidate := range names {
			if full := strings.TrimSuffix(candidate, "."); isFull(full, name) {
				return full
			}
		}
	}
	return name
}

// isFull: the same machine with a domain. A name of another machine at the same address is not ours.
func isFull(full, name string) bool {
	return strings.HasPrefix(strings.ToLower(full), strings.ToLower(name)+".") && config.CheckHost(full) == nil
}

// serverNames are all names under which the EST server can be reached, hosts first: plain and full name, localhost and the addresses of the interfaces.
func serverNames(ctx context.Context, hosts []string) []string {
	names := append([]string{}, hosts...)
	names = append(names, HostName(ctx))
	if plain, err := os.Hostname(); err == nil && config.CheckHost(plain) == nil {
		names = append(names, plain)
	}
	names = append(names, "localhost")
	addresses, err := net.InterfaceAddrs()
	if err == nil {
		for _, a := range addresses {
			if ipNet, ok := a.(*net.IPNet); ok && !ipNet.IP.IsLinkLocalUnicast() {
				names = append(names, ipNet.IP.String())
			}
		}
	}
	seen := map[string]bool{}
	var unique []string
	for _, n := range names {
		if key := strings.ToLower(n); !seen[key] && len(unique) < maxNames {
			seen[key] = true
			unique = append(unique, n)
		}
	}
	return unique
}
