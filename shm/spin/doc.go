// Package spin has what loops need that look at a word of a region until another processor has changed it.
package spin
