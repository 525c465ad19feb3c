// Package table turns rows of CSV into lines of JSON, values checked and typed, bad ones reported in the line itself. It
// knows nothing of what runs it: rows come from an io.Reader and lines go to an io.WriteCloser.
package table

// Batch is the request of the activity.
type Batch struct {
	Batch    int               `json:"batch"`     // counted from 1
	FirstRow int               `json:"first_row"` // counted from 1
	Rows     int               `json:"rows"`
	Invalid  int               `json:"invalid"` // rows with an error
	Sums     map[string]string `json:"sums"`    // exact decimals by output name
}

// Report is the run's result.
type Report struct {
	Rows    int               `json:"rows"`
	Invalid int               `json:"invalid"`
	Batches int               `json:"batches"`
	Sums    map[string]string `json:"sums"`
}

// Add counts a batch that the activity has taken.
func (r *Report) Add(b Batch) {
	r.Rows += b.Rows
	r.Invalid += b.Invalid
	r.Batches++
}
