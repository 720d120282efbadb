package service

import (
	"os"
	"testing"
)

// A migration without a journal leaves no destination behind, and does not say that
// nothing was changed where something was.
func TestBeginWithoutJournal(t *testing.T) {
	for name, c := range map[string]struct {
		overwrite bool
		want      Outcome
	}{
		"new destination":         {false, Refused},
		"overwritten destination": {true, Failed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			content := s.image("image", mib)
			o := moving()
			if o.Overwrite = c.overwrite; c.overwrite {
				s.must(os.WriteFile(s.path("moved"), randomBytes(mib), 0o600))
			}
			a, err := s.prepare(s.request("image", "moved", o))
			s.must(err)
			a.plan.RegionBytes = 3 // no journal can be made for that
			if _, err = a.begin(); OutcomeOf(err) != c.want {
				t.Errorf("%v, want outcome %d", err, c.want)
			}
			if s.exists("moved") != c.overwrite {
				t.Errorf("a destination is there: %v", s.exists("moved"))
			}
			s.wantContent("image", content)
			if all, err := s.List(); err != nil || len(all) != 0 {
				t.Errorf("%d migrations are listed: %v", len(all), err)
			}
		})
	}
}
