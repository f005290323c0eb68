// Package lint checks a certificate before the CA key signs it: zlint's rules of RFC 5280, RFC 5480 and RFC 8813, and rules of our
// own about what a certificate of this CA must be, run on exactly the bytes that will be signed.
package lint

import (
	"fmt"
	"slices"
	"strings"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// Linter holds the chosen rules. It is safe for concurrent use.
type Linter struct{ rules lint.Registry }

// excluded rules contradict what devices need. keyEncipherment beside clientAuth is what RSA leaves of established systems
// carry, and RFC 5280 section 4.2.1.12 lists consistent usages as "may be", not as the only ones.
var excluded = []string{"e_key_usage_and_extended_key_usage_inconsistent"}

// New selects the rules. The web PKI's own rule sets (CA/Browser Forum, root programmes) do not apply to a private PKI.
func New() (*Linter, error) {
	rules, err := lint.GlobalRegistry().Filter(lint.FilterOptions{ExcludeNames: excluded, IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC8813}})
	if err != nil {
		return nil, fmt.Errorf("lint rules: %w", err)
	}
	return &Linter{rules: rules}, nil
}

// Check lints a DER certificate, whose signature may be a stand-in, by all rules, and returns an error that names every broken one
// of error level.
func (l *Linter) Check(der []byte, is Context) error {
	own, err := ours(der, is)
	if err != nil {
		return fmt.Errorf("lint: %w", err)
	}
	theirs, err := l.standard(der)
	if err != nil {
		return fmt.Errorf("lint: %w", err)
	}
	if broken := append(own, theirs...); len(broken) > 0 {
		return fmt.Errorf("lint: %s", strings.Join(broken, ", "))
	}
	return nil
}

// standard are the broken rules of zlint.
func (l *Linter) standard(der []byte) (broken []string, err error) {
	certificate, err := zx509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	results := zlint.LintCertificateEx(certificate, l.rules)
	if !results.ErrorsPresent && !results.FatalsPresent {
		return nil, nil
	}
	for name, result := range results.Results {
		if result.Status >= lint.Error {
			broken = append(broken, name)
		}
	}
	slices.Sort(broken)
	return broken, nil
}
