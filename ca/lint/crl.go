// CRLs are linted as certificates are: before anybody sees them.

package lint

import (
	"fmt"
	"slices"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"
)

// backdated is broken on purpose: thisUpdate lies a little in the past for consumers whose clocks run behind, revocations do not.
const backdated = "e_crl_revocation_time_after_this_update"

// CRL lints a DER CRL, whose signature may be a stand-in. The error is for one that cannot be read; broken names the broken rules of
// error level.
func (l *Linter) CRL(der []byte) (broken []string, err error) {
	list, err := zx509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("lint: %w", err)
	}
	for name, result := range zlint.LintRevocationListEx(list, l.rules).Results {
		if result.Status >= lint.Error && name != backdated {
			broken = append(broken, name)
		}
	}
	slices.Sort(broken)
	return broken, nil
}
